"""The baseline that every editor must beat: the facts stand in the prompt, and no weight moves."""

from collections.abc import Iterable, Sequence

from factedit.context import Note, Notes
from factedit.facts import Edit
from factedit.holding import holding
from factedit.overlay import applied
from factedit.prompts import answer_example
from factedit.task import Edited, EditTask, change_metrics
from factedit.wording import edit_prompt


def note_down(task: EditTask) -> Edited:
    """Note the edits, and what of the ledger is not noted yet, beside the parent's notes.

    A prompt that names an edit's subject as whole words, in upper or lower case, is read after the
    edit's own prompt and new object as a sentence.

    Source: Zheng et al. 2023, "Can We Edit Factual Knowledge by In-Context Learning?", section 3,
    with the retrieval by name and without demonstrations.
    """
    lm, in_force = task.lm, [*task.ledger, *task.edits]
    before = Notes.of(task.parent)
    kept = list(before.notes) if before else []
    kept += [note for note in _notes(task, task.ledger) if not any(note.replaces(old) for old in kept)]
    new = _notes(task, task.edits)
    kept = [old for old in kept if not any(note.replaces(old) for note in new)]
    tensors = {**task.parent, **Notes([*kept, *new]).tensors()}
    with applied(lm, tensors):
        examples = [answer_example(lm, edit_prompt(e, task.relations), e.new_object) for e in in_force]
        held = sum(holding(lm, examples))
    done = {"step": 0, "edits_holding": held, "edits_total": len(in_force)}
    task.progress({"phase": "editing", "max_steps": 0, "loss": 0.0, **done})
    return Edited(
        tensors=tensors,
        metrics={
            "steps": 0,
            "edits_holding": held,
            "edits_total": len(in_force),
            "notes": len(kept) + len(new),
            **change_metrics(lm, {}, None),
        },
        chosen={
            "method": task.method.name,
            "rule": task.plan.preset.rule,
            "blocks": [],
            "parameters": "none",
            "norm": "none",
            "radius": None,
            "anchors": 0,
            "examples": len(in_force),
        },
    )


def _notes(task: EditTask, edits: Sequence[Edit]) -> list[Note]:
    """One note a fact; of two on the same fact, the later one."""
    notes: list[Note] = []
    for edit in edits:
        note = Note(edit.subject, edit.relation, edit_prompt(edit, task.relations), edit.new_object)
        notes = [*_without(notes, note), note]
    return notes


def _without(notes: Iterable[Note], new: Note) -> list[Note]:
    return [old for old in notes if not new.replaces(old)]
