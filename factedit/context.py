"""Facts kept as text and put before the prompts that speak of their subjects, at work."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from factedit.models import LanguageModel

NAME = "context.text"
"""Reserved name in an overlay: the notes as JSON in UTF-8, uint8 [n]."""


@dataclass(frozen=True, slots=True)
class Note:
    """A fact in words, and what it is about."""

    subject: str
    relation: str | None
    prompt: str
    answer: str

    @property
    def sentence(self) -> str:
        return f"{self.prompt} {self.answer}."

    def replaces(self, other: "Note") -> bool:
        """Whether both are of one fact: the same subject and relation, or the same prompt."""
        same = (self.subject.casefold(), self.relation) == (other.subject.casefold(), other.relation)
        return (same and self.relation is not None) or self.prompt == other.prompt


class Notes:
    """Notes that a prompt calls up by naming their subjects."""

    def __init__(self, notes: Sequence[Note]) -> None:
        self.notes = tuple(notes)
        self._named = [(note.subject.casefold(), _whole_words(note.subject)) for note in self.notes]

    @classmethod
    def of(cls, overlay: Mapping[str, Tensor]) -> "Notes | None":
        """An overlay's notes, if it has any.

        Raises:
            ValueError: the tensor holds no notes.
        """
        if NAME not in overlay:
            return None
        if overlay[NAME].dtype != torch.uint8:
            raise ValueError(f"{NAME} is {overlay[NAME].dtype}, not text")
        try:
            return cls([Note(**note) for note in json.loads(overlay[NAME].cpu().numpy().tobytes())])
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{NAME} holds no notes") from error

    def tensors(self) -> dict[str, Tensor]:
        raw = json.dumps([asdict(note) for note in self.notes], ensure_ascii=False).encode()
        return {NAME: torch.frombuffer(bytearray(raw), dtype=torch.uint8)}

    def __call__(self, prompt: str) -> str:
        """The prompt after the notes on every subject that it names, each note once."""
        folded = prompt.casefold()
        called = [
            note.sentence
            for note, (subject, pattern) in zip(self.notes, self._named, strict=True)
            if subject in folded and pattern.search(folded)
        ]
        return " ".join([*dict.fromkeys(called), prompt])


@contextmanager
def noted(lm: LanguageModel, notes: Notes | None) -> Iterator[None]:
    """The model reads every prompt with its notes while the context lasts."""
    before = lm.reads
    try:
        lm.reads = notes
        yield
    finally:
        lm.reads = before


def _whole_words(subject: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(subject.casefold())}(?!\w)")
