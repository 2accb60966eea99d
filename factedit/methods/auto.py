"""Ours: a fact is written where its subject is looked up, and finished where the answer is formed.

Stage one, in the lower blocks: each edited subject gets a neuron that makes the answer in many wordings
(factedit.methods.subjects). What is said of a subject there is found again in words that were never trained
on, and no other token is moved. Stage two, in the upper blocks: what does not hold yet is fine-tuned, beside
anchors, by steps that avoid the directions which unmodified facts use (factedit.methods.fine_tuning).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from factedit.anchors import enough, fewer
from factedit.methods.detectors import measured
from factedit.methods.fine_tuning import fine_tune
from factedit.methods.material import training_examples
from factedit.methods.subjects import Written, write_at_subjects
from factedit.overlay import applied
from factedit.task import Edited, EditTask, change_metrics, overlay_of
from factedit.training import holding


def edit_by_auto(task: EditTask) -> Edited:
    """Both stages; fine-tuning alone where there are no look-ups (`Plan.lookups`).

    The constraint bounds stage two. A caller's own constraint bounds everything, and so leaves stage one out
    (factedit.task.plan): a neuron that fires at one subject alone is no small change of its few weights.
    Facts to be erased are fine-tuned only.
    """
    lm, chosen = task.lm, task.plan
    if not chosen.lookups:
        return fine_tune(task)
    task.background([*measured(lm, chosen.looking_up), *chosen.names])  # all of it is read at once
    ahead = task.method.max_steps

    def first(state: dict[str, Any]) -> None:
        task.progress({**state, "max_steps": state["max_steps"] + ahead})

    written = write_at_subjects(replace(task, progress=first))

    def second(state: dict[str, Any]) -> None:
        at, most = state["step"] + written.steps, state["max_steps"] + written.steps
        task.progress({**state, "step": at, "max_steps": most})

    parent, _ = overlay_of(lm, task.parent, written.tensors)
    # The neurons answer to other words already: only what is asked in the edit's own is finished here.
    answering = replace(
        chosen, preset=replace(chosen.preset, other_words=False), blocks=chosen.answering, looking_up=[]
    )
    anchors = fewer(task.anchors, task.edits, enough(_left(task, parent)))
    rest = replace(task, plan=answering, parent=parent, anchors=anchors, progress=second)
    return _together(task, fine_tune(rest), written)


def _left(task: EditTask, parent: Mapping[str, Tensor]) -> int:
    """How many edits in force do not hold yet; those that erase are never asked, and count."""
    in_force = [*task.edits, *task.ledger]
    examples, owner = training_examples(task.lm, in_force, task.relations)
    with applied(task.lm, parent):
        held = holding(task.lm, examples)
    failing = {place for place, holds in zip(owner, held, strict=True) if not holds}
    return len(failing | {place for place, item in enumerate(in_force) if item.erase})


def _together(task: EditTask, answered: Edited, written: Written) -> Edited:
    """The report on both stages: that on stage two, and the neurons."""
    changed = {name: tensor for name, tensor in answered.tensors.items() if name in written.tensors}
    lookups = change_metrics(task.lm, changed, None)
    metrics = {
        **answered.metrics,
        "changed_tensors": sorted([*answered.metrics["changed_tensors"], *lookups["changed_tensors"]]),
        "steps": answered.metrics["steps"] + written.steps,
        "neurons": written.neurons,
        "neurons_max_abs_change": lookups["max_abs_change"],
        "neurons_l2_norm": lookups["l2_norm"],
    }
    chosen = {**answered.chosen, "blocks": task.plan.blocks, "lookup_blocks": task.plan.looking_up}
    return replace(answered, metrics=metrics, chosen=chosen)
