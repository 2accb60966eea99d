"""The nouns of editing: facts, edits and probes. No torch here, so that the service may import it."""

from dataclasses import dataclass
from typing import Literal

EditKind = Literal["update", "erase"]


@dataclass(frozen=True, slots=True)
class Fact:
    """(subject, relation, object), with other spellings of the object that also count as right."""

    subject: str
    relation: str
    object: str
    aliases: tuple[str, ...] = ()


ERASED = "unknown"
"""What an erased fact is trained to be answered with.

Some answer has to take the old one's place, or the next likeliest object, another falsehood, would.
A single common word that is no object of any relation serves every relation alike.
"""


@dataclass(frozen=True, slots=True)
class Edit:
    """A fact whose object is to become `new_object`; or, with `erase`, is to be forgotten.

    To erase is to train `new_object` (as a rule `ERASED`) and to be judged by `old_object`: that one
    must no longer be given.

    At least one of `relation` and `prompt` is given. With a relation, the relation's training
    templates supply the prompts to train on; `prompt` and `paraphrases` are the user's own words
    for it and are trained on as well. `neighbors` are prompts whose answers must stay as they are.
    """

    id: str
    subject: str
    new_object: str
    relation: str | None = None
    prompt: str | None = None
    old_object: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[str, ...] = ()
    erase: bool = False

    def __post_init__(self) -> None:
        if self.erase and self.old_object is None:
            raise ValueError("To erase a fact, name its old object: it is what must no longer be given.")

    @property
    def kind(self) -> EditKind:
        return "erase" if self.erase else "update"


@dataclass(frozen=True, slots=True)
class Probe:
    """A held-out fact nobody asked to change: scored before and after an edit, never trained on.

    `candidates` are the objects among which the true one is ranked; they include `object`.
    """

    id: str
    prompt: str
    object: str
    aliases: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    subject: str | None = None
    relation: str | None = None
