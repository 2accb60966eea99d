"""Edit a model: facts to change in, a small overlay out, the root untouched (DESIGN.md, choices 1-3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from factedit.answers import exactly
from factedit.block_trials import may_try, try_blocks
from factedit.curvature import Covariance, measure
from factedit.facts import Edit
from factedit.methods import EDITORS
from factedit.models import LanguageModel, iter_block_tensors
from factedit.questions import questions
from factedit.relations import Relation
from factedit.running_text import RunningText
from factedit.specs import Blocks, ConstraintSpec, MethodSpec
from factedit.task import Edited, EditingError, EditTask, change_metrics, overlay_of, plan
from factedit.wording import plain_prompts


def edit(
    lm: LanguageModel,
    *,
    parent: Mapping[str, Tensor],
    edits: Sequence[Edit],
    ledger: Sequence[Edit],
    relations: Mapping[str, Relation],
    anchors: Sequence[str],
    method: MethodSpec,
    blocks: Blocks,
    constraint: ConstraintSpec,
    seed: int,
    progress: Callable[[dict[str, Any]], None],
    background: Callable[[Sequence[str]], Covariance] | None = None,
    texts: RunningText | None = None,
    asked: RunningText | None = None,
) -> Edited:
    """Make `edits` hold on top of `parent`, by the method that `method` names.

    Deterministic for a seed on one device kind. `edits` may be empty: then the ledger alone is made
    to hold; and if that is empty too, the parent stays as it is.

    Args:
        ledger: earlier edits in force, which are kept.
        anchors: unmodified prompts, whose answers are to stay the root's.
        background: for methods that use the curvature, what enters the named matrices while the
            root reads unmodified facts; measured on the anchors where it is not given.
        texts: in which no edited subject occurs (factedit.own_text); `auto`'s neurons are kept silent there,
            and answers are not finished by neurons where none are given. `crisp` measures on them.
        asked: questions of anybody (factedit.questions), by which `auto` tells what an edit asks; read where
            they are not given.

    Raises:
        NoSuchBlock; EditingError: no tensor to train, or none that the method can move; edits that contradict
            each other.
    """
    _check_contradictions(edits, relations)
    task = EditTask(
        lm=lm,
        plan=plan(lm, method, blocks, constraint),
        parent=parent,
        edits=edits,
        ledger=ledger,
        relations=relations,
        anchors=anchors,
        method=method,
        seed=seed,
        progress=progress,
        background=background or (lambda names: measure(lm, names, anchors)),
        texts=texts or RunningText.of(lm, []),
        asked=asked or RunningText.of(lm, questions()),
    )
    if not task.edits and not task.ledger:
        return _unchanged(task)
    if blocks == "auto" and may_try(task):
        return _where_it_is_best(task, constraint)
    return EDITORS[method.name](task)


def _where_it_is_best(task: EditTask, constraint: ConstraintSpec) -> Edited:
    """In the blocks that a trial finds best; a method that takes Adam's steps in an l_inf ball of which the
    caller did not give the radius gets that of the trial too."""
    chosen = task.plan
    choice = try_blocks(task, constraint.radius if chosen.norm == "l_inf" else None)
    names = list(iter_block_tensors(task.lm, choice.blocks, chosen.parameters))
    radius = chosen.radius
    if chosen.norm == "l_inf" and constraint.radius is None and chosen.preset.rule == "adam":
        held = chosen.anchors.count and chosen.anchors.weight
        radius = choice.radius(alone=not held and chosen.preset.unmodified == "none")
        # A ball that earlier edits lie outside of would undo them.
        before = {name: task.parent[name] for name in names if name in task.parent}
        radius = max(radius, change_metrics(task.lm, before, None)["max_abs_change"])
    there = replace(chosen, blocks=choice.blocks, names=names, radius=radius)
    edited = EDITORS[task.method.name](replace(task, plan=there))
    return replace(edited, chosen={**edited.chosen, "tried": choice.report()})


def _check_contradictions(edits: Sequence[Edit], relations: Mapping[str, Relation]) -> None:
    """No weights could satisfy both: a method would spend all its steps on them, and harm the rest."""
    asked: dict[str, Edit] = {}
    for one in edits:
        for prompt in plain_prompts(one, relations):
            earlier = asked.setdefault(prompt, one)
            if not exactly(earlier.new_object, one.new_object):
                raise EditingError(
                    f"Edits {earlier.id} and {one.id} contradict each other: {prompt!r} is to be answered "
                    f"with both {earlier.new_object!r} and {one.new_object!r}."
                )


def _unchanged(task: EditTask) -> Edited:
    """The parent itself, where there is nothing to hold: what is left when the last batch is reverted."""
    chosen = task.plan
    tensors, changed = overlay_of(task.lm, task.parent, {})
    return Edited(
        tensors=tensors,
        metrics={
            "steps": 0,
            "edits_holding": 0,
            "edits_total": 0,
            **change_metrics(task.lm, changed, chosen.radius if chosen.norm == "l_inf" else None),
        },
        chosen={
            "method": task.method.name,
            "rule": chosen.preset.rule,
            "blocks": chosen.blocks,
            "parameters": chosen.parameters,
            "norm": chosen.norm,
            "radius": chosen.radius,
            "anchors": 0,
            "examples": 0,
        },
    )
