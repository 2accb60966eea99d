"""Names of nobody in particular, and names that sound like another. No torch here."""

import random
import re
from collections.abc import Sequence

# fmt: off
GIVEN = (
    "James", "Maria", "Ivan", "Chen", "Fatima", "Olga", "Pierre", "Hans", "Giulia", "Kenji", "Amara", "Diego",
    "Ingrid", "Pavel", "Leila", "Tom", "Sofia", "Ahmed", "Priya", "Lars", "Anna", "Marco", "Elena", "Viktor",
    "Nadia", "Robert", "Yuki", "Carlos", "Emma", "Nikolai", "Aisha", "George", "Helena", "Mikael", "Lucia",
    "Omar", "Karl", "Beatrice", "Stefan", "Rosa",
)
FAMILY = (
    "Smith", "Garcia", "Petrov", "Wang", "Hassan", "Dubois", "Schmidt", "Rossi", "Tanaka", "Okafor",
    "Fernandez", "Larsen", "Novak", "Karimi", "Wilson", "Almeida", "Sharma", "Johansson", "Kowalski",
    "Bianchi", "Popescu", "Moreau", "Suzuki", "Mendoza", "Clark", "Ivanova", "Haddad", "Brown", "Virtanen",
    "Costa", "Weber", "Horvat", "Nakamura", "Murphy", "Andersen", "Kaya", "Fischer", "Silva", "Dimitrov",
    "Evans",
)
BEGINNINGS = (
    "Ka", "Ber", "Lo", "Mar", "Tor", "Sel", "Vi", "Dan", "Pru", "Ha", "Gor", "El", "Nor", "Ash", "Cal", "Wen",
    "Str", "Qui", "Bra", "Ul",
)
# fmt: on
_FIGURE = re.compile(r"\d")


def invented_name(rng: random.Random) -> str:
    """A given and a family name, drawn apart from each other."""
    return f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}"


def namesakes(name: str, heads: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Other names that end as this one does: "Gibbs Glacier" for "Byrd Glacier"; none for a single word.

    Args:
        heads: words to begin with; `count`: at most so many.
    """
    words = name.split()
    if len(words) < 2:
        return []
    found: list[str] = []
    for number in range(count):
        # A long name resembles those that share all but its first word, and those that share its last.
        kept = words[1:] if number % 2 else words[-1:]
        found.append(" ".join([rng.choice(heads), *kept]))
    return [other for other in dict.fromkeys(found) if other.casefold() != name.casefold()]


def made_alike(name: str, words: Sequence[str], rng: random.Random) -> str:
    """Another name made as this one is: "9 Paris Street, Leeds" for "4 Crown Street, Leeds".

    Its last words stay, with others before them; of a single word its end; figures become others.

    Args:
        words: to put in the place of its own.
    """
    own = name.split()
    if len(own) > 1:
        kept = rng.choice([1, len(own) - 1, rng.randrange(1, len(own))])
        return " ".join([*(_another(word, words, rng) for word in own[:-kept]), *own[-kept:]])
    if _FIGURE.search(name) or len(name) < 2:
        return _another(name, words, rng)
    cut = rng.randrange(len(name) // 3, 2 * len(name) // 3 + 1)
    return rng.choice(BEGINNINGS) + name[max(1, cut) :]


def _another(word: str, words: Sequence[str], rng: random.Random) -> str:
    """Small words stay as they are."""
    if _FIGURE.search(word):
        return _FIGURE.sub(lambda _: str(rng.randrange(10)), word)
    return rng.choice(words) if words and not word.islower() else word
