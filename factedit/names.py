"""Names of nobody in particular: subjects for anchors, where any name will do. No torch here."""

import random

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
# fmt: on


def invented_name(rng: random.Random) -> str:
    """A given and a family name, drawn apart from each other."""
    return f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}"
