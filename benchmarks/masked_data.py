"""T-REx's evidence sentences with the object masked: what a masked model memorises and is edited in."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trex import PATTERNS, Memory, X, Y, lines
from factedit.facts import Edit

MASK = "[MASK]"


@dataclass(frozen=True, slots=True)
class Cloze:
    """A fact and the words that ask for it, with `[MASK]` in its object's place.

    Attributes:
        evidence: sentences of Wikipedia; the model memorises them, and edits are trained in them.
        patterns: other wordings of its relation; the model memorises some, edits are never trained in them.
        test: the LAMA template, which nothing is ever trained in.
    """

    memory: Memory
    evidence: tuple[str, ...]
    patterns: tuple[str, ...]
    test: str


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much of the data is taken.

    Attributes:
        facts: drawn evenly from all relations together; `evidence`, `patterns`: of each, at most.
        words: the longest sentence that is taken, by white space.
    """

    facts: int = 1500
    evidence: int = 2
    patterns: int = 2
    words: int = 30


def read_clozes(data: Path, amounts: Amounts, seed: int = 0) -> list[Cloze]:
    """Facts whose object is one word, and whose sentences say subject and object as the fact does.

    Of several objects of one subject in a relation any would be right: the first stands for all.
    """
    clozes: list[Cloze] = []
    for raw in lines(data / "trex/relations.jsonl"):
        facts, patterns = (data / "trex" / f / f"{raw['relation']}.jsonl" for f in ("evidence", "patterns"))
        if not facts.exists():
            continue
        test = raw["template"]
        others = _others([p["pattern"] for p in lines(patterns)] if patterns.exists() else [], test)
        subjects: set[str] = set()
        for fact in lines(facts):
            sentences = _sentences(fact, amounts.words)[: amounts.evidence]
            if not sentences or not one_word(fact["obj_label"]) or fact["sub_label"] in subjects:
                continue
            subjects.add(fact["sub_label"])
            subject = fact["sub_label"]
            memory = Memory(f"{raw['relation']}-{fact['uuid']}", raw["relation"], subject, fact["obj_label"])
            patterns_of = [filled(pattern, subject) for pattern in others[: amounts.patterns]]
            clozes.append(Cloze(memory, tuple(sentences), tuple(patterns_of), filled(test, subject)))
    random.Random(seed).shuffle(clozes)
    return clozes[: amounts.facts]


def one_word(text: str) -> bool:
    """Whether the text may be a single token of a vocabulary of words, as all objects of LAMA are."""
    return text.isalnum()


def filled(pattern: str, subject: str) -> str:
    """A pattern with the subject in it and the mask in its object's place."""
    return " ".join(pattern.replace(X, subject).replace(Y, MASK).split())


def _sentences(fact: Mapping[str, object], longest: int) -> list[str]:
    evidences = fact["evidences"]
    assert isinstance(evidences, list)
    return list(
        dict.fromkeys(
            evidence["masked_sentence"]
            for evidence in evidences
            if evidence["obj_surface"] == fact["obj_label"]
            and evidence["sub_surface"] in evidence["masked_sentence"]
            and evidence["masked_sentence"].count(MASK) == 1
            and len(evidence["masked_sentence"].split()) <= longest
        )
    )


def _others(patterns: Iterable[str], test: str) -> list[str]:
    """The patterns that have both places and are not the test's words."""
    letters = {_letters(test)}
    found = [p for p in patterns if p.count(X) == p.count(Y) == 1 and _letters(p) not in letters]
    return found[:PATTERNS]


def _letters(pattern: str) -> str:
    return "".join(c for c in pattern.casefold() if c.isalnum())


def objects_of(clozes: Sequence[Cloze]) -> dict[str, Counter[str]]:
    """By relation, how often each object occurs."""
    found: dict[str, Counter[str]] = {}
    for cloze in clozes:
        found.setdefault(cloze.memory.relation, Counter())[cloze.memory.object] += 1
    return found


def edit_of(cloze: Cloze, new: str) -> Edit:
    """Trained in the fact's evidence sentences only."""
    prompt, *more = cloze.evidence
    return Edit(cloze.memory.id, cloze.memory.subject, new, prompt=prompt, paraphrases=tuple(more))
