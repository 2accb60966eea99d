"""Ours: a fact is written where its subject is looked up, and finished where the answer is formed.

Stage one, in the lower blocks: a neuron is added for each edited subject, which makes the answer in many
wordings (factedit.methods.subjects). What is said of a subject there is found again in words that were never
trained on; a text at which no neuron fires is answered as before, to the last bit. Stage two, in the upper
blocks: what does not hold yet, if anything, is fine-tuned, beside anchors, by steps that avoid the directions
which unmodified facts use (factedit.methods.fine_tuning).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from factedit.anchors import enough, fewer
from factedit.methods.fine_tuning import fine_tune
from factedit.methods.material import training_examples
from factedit.methods.subjects import Written, with_neurons, write_at_subjects
from factedit.overlay import applied
from factedit.task import Edited, EditTask, change_metrics
from factedit.training import holding


def edit_by_auto(task: EditTask) -> Edited:
    """Both stages; the first alone where it is enough, the second alone where nothing may be added.

    The constraint bounds stage two. A caller's own constraint bounds everything, and so leaves stage one out
    (factedit.task.plan): a neuron that fires at one subject alone is no small change of a few weights.
    Facts to be erased are fine-tuned only.
    """
    if not task.plan.looking_up:
        return fine_tune(task)
    ahead = task.method.max_steps

    def first(state: dict[str, Any]) -> None:
        task.progress({**state, "max_steps": state["max_steps"] + ahead})

    written = write_at_subjects(replace(task, progress=first))
    parent = with_neurons(task.parent, written.neurons)
    left = _left(task, parent)
    return _together(task, _fine_tuned(task, parent, left, written.steps) if left else None, written, parent)


def _left(task: EditTask, parent: Mapping[str, Tensor]) -> int:
    """How many edits in force do not hold yet; those that erase are never asked, and count."""
    in_force = [*task.edits, *task.ledger]
    examples, owner = training_examples(task.lm, in_force, task.relations)
    with applied(task.lm, parent):
        held = holding(task.lm, examples)
    failing = {place for place, holds in zip(owner, held, strict=True) if not holds}
    return len(failing | {place for place, item in enumerate(in_force) if item.erase})


def _fine_tuned(task: EditTask, parent: Mapping[str, Tensor], left: int, before: int) -> Edited:
    """What does not hold yet, in the upper blocks."""

    def second(state: dict[str, Any]) -> None:
        task.progress({**state, "step": state["step"] + before, "max_steps": state["max_steps"] + before})

    # The neurons answer to other words already: only what is asked in the edit's own is finished here.
    preset = replace(task.plan.preset, other_words=False)
    answering = replace(task.plan, preset=preset, blocks=task.plan.answering, looking_up=[])
    anchors = fewer(task.anchors, task.edits, enough(left))
    return fine_tune(replace(task, plan=answering, parent=parent, anchors=anchors, progress=second))


def _together(task: EditTask, answered: Edited | None, written: Written, parent: dict[str, Tensor]) -> Edited:
    """The report on both stages."""
    if answered is None:
        edits = len(task.edits) + len(task.ledger)
        answered = Edited(
            tensors={name: tensor.cpu() for name, tensor in parent.items()},
            metrics={
                "steps": 0,
                "edits_holding": edits,
                "edits_total": edits,
                **change_metrics(task.lm, {}, None),
            },
            chosen={
                "method": task.method.name,
                "rule": task.plan.preset.rule,
                "parameters": task.plan.parameters,
                "norm": task.plan.norm,
                "radius": task.plan.radius,
                "anchors": 0,
                "examples": edits,
            },
        )
    metrics = {
        **answered.metrics,
        "steps": answered.metrics["steps"] + written.steps,
        "neurons": written.added,
    }
    chosen = {**answered.chosen, "blocks": task.plan.blocks, "lookup_blocks": task.plan.looking_up}
    return replace(answered, metrics=metrics, chosen=chosen)
