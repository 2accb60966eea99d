"""What a batch would do if it were posted: the words of each edit, and what the base answers to it today."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from factedit.answers import begins_with, mentions
from factedit.facts import Edit, EditKind
from factedit.relations import Relation
from factedit.wording import edit_prompt, evaluation_prompts, ours_each, training_prompts
from service import batches, versions
from service.errors import ServiceError
from service.predictor_client import Question, WeightsCorrupt
from service.rivals import rivals
from service.tables import EditRow

ASKED = 100
"""Edits of which the base is asked; a large batch is planned in seconds, its base asked in many minutes."""
ASKED_AT_ONCE = 32
ASK_SECONDS = 20.0
ANSWER_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Rival:
    """Another edit that seems to ask the same of the same subject: in force, or at a place of this batch."""

    edit_id: str | None
    place: int | None
    prompt: str
    new_object: str


@dataclass(slots=True)
class PlannedEdit:
    """What would be done for one edit; the last two are unknown until the base is asked."""

    kind: EditKind
    subject: str
    relation: str | None
    new_object: str
    old_object: str | None
    prompt: str
    training_prompts: list[str]
    evaluation_prompts: list[str]
    supersedes: list[str]
    rivals: list[Rival]
    current_answer: str | None = None
    already_right: bool | None = None


def plan(
    edits: Sequence[Edit],
    known: Mapping[str, Relation],
    kept: Sequence[EditRow],
    superseded: Sequence[EditRow],
    *,
    other_words: bool,
) -> list[PlannedEdit]:
    """By edit of a checked batch.

    Args:
        kept, superseded: what becomes of the base's ledger. other_words: the method adds wordings of ours.
    """
    ours = ours_each(len(edits)) if other_words else 0
    force = _by_fact(superseded)
    beside = _rivals(edits, kept, known)
    return [
        PlannedEdit(
            kind=edit.kind,
            subject=edit.subject,
            relation=edit.relation,
            new_object=edit.new_object,
            old_object=edit.old_object,
            prompt=edit_prompt(edit, known),
            training_prompts=training_prompts(edit, known, place, ours=ours),
            evaluation_prompts=evaluation_prompts(edit, known),
            supersedes=sorted({row.id for key in versions.keys_of(edit) for row in force.get(key, ())}),
            rivals=beside.get(edit, []),
        )
        for place, edit in enumerate(edits)
    ]


def _rivals(
    edits: Sequence[Edit], kept: Sequence[EditRow], known: Mapping[str, Relation]
) -> dict[Edit, list[Rival]]:
    """By edit of the batch that has any, those of the batch and those that would still be in force."""
    subjects, place = {edit.subject.casefold() for edit in edits}, {edit: n for n, edit in enumerate(edits)}
    earlier = [batches.edit_of(row) for row in kept if row.subject.casefold() in subjects]
    return {
        edit: [
            Rival(
                edit_id=other.id or None,
                place=place.get(other),
                prompt=edit_prompt(other, known),
                new_object=other.new_object,
            )
            for other in others
        ]
        for edit, others in rivals([*edits, *earlier], known).items()
    }


def _by_fact(rows: Sequence[EditRow]) -> dict[tuple[str, ...], list[EditRow]]:
    found: dict[tuple[str, ...], list[EditRow]] = {}
    for row in rows:
        for key in versions.keys_of(row):
            found.setdefault(key, []).append(row)
    return found


Ask = Callable[[Question], Awaitable[list[dict[str, Any]]]]


async def ask_base(
    planned: Sequence[PlannedEdit], ask: Ask, root_digest: str, overlay_digest: str | None, at_once: int
) -> None:
    """Fill in what the base answers today to the first edits, as far as a predictor says so in time.

    Raises:
        WeightsCorrupt: the base must not be built on.
    """
    size = min(ASKED_AT_ONCE, at_once)
    first = planned[:ASKED]
    with anyio.move_on_after(ASK_SECONDS):
        for start in range(0, len(first), size):
            edits = first[start : start + size]
            prompts = [edit.prompt for edit in edits]
            try:
                answers = await ask(Question(root_digest, overlay_digest, prompts, ANSWER_TOKENS))
            except WeightsCorrupt:
                raise
            except ServiceError:
                return
            for edit, said in zip(edits, answers, strict=True):
                edit.current_answer = said["text"]
                edit.already_right = _already_right(edit, said["text"])


def _already_right(edit: PlannedEdit, answer: str) -> bool:
    if edit.kind == "erase":
        return not mentions(answer, edit.old_object or "")
    return begins_with(answer, (edit.new_object,))
