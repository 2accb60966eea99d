"""Ours: a fact is written where its subject is looked up, and finished where the answer is formed.

Stage one, in the lower blocks: each edited subject gets a neuron that makes the answer in many wordings
(factedit.methods.subjects). What is said of a subject there is found again in words that were never trained
on, and no other token is moved. Stage two, in the upper blocks: what does not hold yet is fine-tuned, beside
anchors, by steps that avoid the directions which unmodified facts use (factedit.methods.fine_tuning).
"""

from dataclasses import replace
from typing import Any

from factedit.methods.detectors import measured
from factedit.methods.fine_tuning import fine_tune
from factedit.methods.subjects import Written, write_at_subjects
from factedit.task import Edited, EditTask, change_metrics, overlay_of


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
    answered = fine_tune(replace(task, plan=answering, parent=parent, progress=second))
    return _together(task, answered, written)


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
