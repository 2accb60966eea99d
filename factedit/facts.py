"""The nouns of editing: facts, edits and probes. No torch here, so that the service may import it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """(subject, relation, object), with other spellings of the object that also count as right."""

    subject: str
    relation: str
    object: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """A fact whose object is to become `new_object`.

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
