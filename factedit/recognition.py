"""Which relation a bare prompt asks about, and our own words for that relation. No torch here."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

from factedit.object_types import fit, types_of
from factedit.relations import SUBJECT

COVERED, AHEAD = 0.5, 0.06
"""The least share of a prompt's words that cues must explain, and the least lead over the next family."""
_FILLER = re.compile(
    "a|an|the|is|was|are|were|be|been|being|do|does|did|has|have|had|of|s|that|this|which|what|whose|name|called|"
    "it|its|he|his|she|her|they|their|to|would|can|could|will|there|please|question|answer"
)
"""Words that say nothing of the relation."""
_IRREGULAR = {
    "whom": "who", "died": "die", "dies": "die", "dying": "die", "buried": "bury", "married": "marry",
    "wrote": "write", "spoke": "speak", "spoken": "speak", "sang": "sing", "sung": "sing", "made": "make",
    "making": "make", "built": "build", "fought": "fight", "taught": "teach",
}  # fmt: skip
_SUFFIX = re.compile(r"(?<=\w{3})(ings?|ed|es|e|s)$")
_FULL_NAME = re.compile(r"\b(family|last|first|given) name\b")
_REVERSED = re.compile(r"\W*(is|was|are|were)?\s*\b(the|an?|one of the)\s(\S+\s){1,3}of\W*")
"""What stands before "of" here is the subject: "Y is the author of" does not ask who wrote Y."""

_FOLLOWS = (
    r"\W*$|\s*[,.;:()]|['\u2019]s?\s|\s+(\w+(s|ed)|in|on|at|of|from|to|by|for|with|and|that|which|who|are|were|did|"
    r"do|can|will|would|had|have|stood|lay|lie|found|made|built|born|first|now)\b"
)
"""What comes after a whole name."""


@dataclass(frozen=True, slots=True)
class Wording:
    """A family of relations that are worded alike: what it is known by, and templates to train on.

    `cues` are words or phrases anywhere in a prompt; `bare` are whole prompts that say so little that
    only the object's type tells the relation; for `object_type` see `object_types.fit`.
    """

    name: str
    description: str
    object_type: str | None
    cues: tuple[str, ...]
    templates: tuple[str, ...]
    bare: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recognition:
    """The family a prompt belongs to; `score` lies between `COVERED` and 1.25."""

    name: str
    score: float


@cache
def load_wordings() -> Mapping[str, Wording]:
    """The families that ship with the library (`factedit/catalogue/wordings`), by name."""
    files = (resources.files("factedit") / "catalogue" / "wordings").iterdir()
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    lists = ("cues", "templates", "bare")
    return {
        row["name"]: Wording(
            row["name"], row["description"], row["object_type"], **{key: tuple(row[key]) for key in lists}
        )
        for row in sorted(rows, key=lambda row: str(row["name"]))
    }


def recognise(
    prompt: str, subject: str, new_object: str, wordings: Mapping[str, Wording] | None = None
) -> Recognition | None:
    """The family that the prompt's words and the object's type agree on; None rather than a guess."""
    if wordings is None:
        return _recognised(prompt, subject, new_object)
    return _best(prompt, subject, new_object, wordings)


@lru_cache(maxsize=1 << 14)
def _recognised(prompt: str, subject: str, new_object: str) -> Recognition | None:
    return _best(prompt, subject, new_object, load_wordings())


def _best(prompt: str, subject: str, new_object: str, wordings: Mapping[str, Wording]) -> Recognition | None:
    index = _index(tuple(wordings.values()))
    asked = _without(prompt, subject)
    words, bare, types = _words(asked), bare_words(asked), types_of(new_object)
    turned = _begins_with(prompt, subject) and _REVERSED.fullmatch(asked)
    cues = index.cues_of if turned else index.cues
    total = sum(map(index.weight, words)) or math.inf
    scores: dict[str, float] = {}
    for name, wording in wordings.items():
        fits = fit(wording.object_type, types)
        if bare in index.bare[name] and fits >= 0:
            scores[name] = 1.0 + fits
            continue
        covered = {place for cue in cues[name] for place in _places(cue, words)}
        share = sum(index.weight(words[place]) for place in covered) / total
        if share >= COVERED:
            scores[name] = share + fits
    best, *others = sorted(scores.items(), key=lambda item: -item[1])[:2] or [("", 0.0)]
    if best[1] < COVERED or any(best[1] - score < AHEAD for _, score in others):
        return None
    return Recognition(*best)


def wordings_for(prompt: str, subject: str, new_object: str) -> list[str]:
    """Our own wordings of what the prompt asks, filled with the subject; [] if it is not recognised.

    A subject that the prompt puts "the" before has it in ours too.
    """
    found = recognise(prompt, subject, new_object)
    if found is None:
        return []
    name = f"the {subject}" if _has_article(prompt, subject) else subject
    filled = (_filled(template, name) for template in load_wordings()[found.name].templates)
    return [text for text in dict.fromkeys(filled) if bare_words(text) != bare_words(prompt)]


def bare_words(text: str) -> str:
    """A text's words alone, in small letters: what two texts have in common that say the same."""
    return " ".join(re.findall(r"\w+", text.casefold()))


class _Index:
    """The families' cues as stems, and how telling each stem is: the fewer families have it, the more."""

    def __init__(self, wordings: tuple[Wording, ...]) -> None:
        self.cues = {w.name: {_words(cue) for cue in w.cues} - {()} for w in wordings}
        self.cues_of = {w.name: {_words(c) for c in w.cues if c.endswith(" of")} - {()} for w in wordings}
        self.bare = {w.name: {bare_words(text) for text in w.bare} for w in wordings}
        seen = Counter(stem for cues in self.cues.values() for stem in {s for cue in cues for s in cue})
        self._weights = {stem: math.log((1 + len(wordings)) / count) for stem, count in seen.items()}
        self._unseen = math.log(1 + len(wordings)) / 2

    def weight(self, stem: str) -> float:
        return self._weights.get(stem, self._unseen)


@cache
def _index(wordings: tuple[Wording, ...]) -> _Index:
    return _Index(wordings)


def _without(prompt: str, subject: str) -> str:
    """The prompt less its subject and "the" before it, in any case; whole if the subject is not there."""
    if not subject.strip():
        return prompt
    return re.sub(rf"(?<!\w)(the\s+)?{_subject(subject)}", " ", prompt, flags=re.IGNORECASE)


def _has_article(prompt: str, subject: str) -> bool:
    """Whether "the" is the subject's own there: that of "the Apple chief executive" is another's."""
    found = rf"(?<!\w)the\s+{_subject(subject)}({_FOLLOWS})"
    return bool(subject.strip()) and re.search(found, prompt, flags=re.IGNORECASE) is not None


def _begins_with(prompt: str, subject: str) -> bool:
    return re.match(rf"(the\s+)?{_subject(subject)}", prompt, flags=re.IGNORECASE) is not None


def _subject(subject: str) -> str:
    return rf"{re.escape(subject.strip())}(?!\w)"


def _filled(template: str, name: str) -> str:
    text = template.replace(SUBJECT, name)
    return text[:1].upper() + text[1:] if template.startswith(SUBJECT) and name.startswith("the ") else text


def _words(text: str) -> tuple[str, ...]:
    """The stems that tell something, in order."""
    words = re.findall(r"\w+", _FULL_NAME.sub(r"\1name", text.casefold()))
    told = (_IRREGULAR.get(word, word) for word in words if not _FILLER.fullmatch(word))
    return tuple(word if word == "founded" else _SUFFIX.sub("", word) for word in told)


def _places(cue: tuple[str, ...], words: tuple[str, ...]) -> Iterator[int]:
    """Where in the words the cue stands, as it is."""
    for start in range(len(words) - len(cue) + 1):
        if words[start : start + len(cue)] == cue:
            yield from range(start, start + len(cue))
