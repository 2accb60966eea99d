"""Constrained fine-tuning: every preset of it is a point in one space (DESIGN.md, choice 1).

That is: objective x constraint x parameters x initial state. Each preset's source is in factedit.presets.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from factedit.constraints import Constraint, build_constraint, distance_fisher
from factedit.example_sets import ExampleSet
from factedit.fisher import fisher_diagonal
from factedit.frozen_context import FrozenContexts
from factedit.holding import Anchors, next_token_log_probabilities
from factedit.methods.material import Material, example_set, kind_of, material_of, objective_of
from factedit.methods.step_rules import step_rules
from factedit.overlay import RESERVED, Overlay, applied
from factedit.prompts import Example, next_token_example
from factedit.steps import StepRule
from factedit.task import Edited, EditingError, EditTask, change_metrics, overlay_of
from factedit.training import Progress, Trained, Trainer, TrainingPlan
from factedit.unmodified import unmodified_examples

MENDING = 4
"""One in so many steps, at most, is left for what did not hold in whole examples."""
FISHER_FACTS = 256
"""How many unmodified facts the Fisher information is measured on, one backward pass each."""


def fine_tune(task: EditTask) -> Edited:
    """Constrained fine-tuning of the new edits on top of the parent, around the root.

    The ledger's earlier edits stay in the mix, so that they are kept; anchors are prompts whose
    next-token distribution is held to the root's. `retrain` starts at the root, whatever the parent.

    Source: Zhu et al. 2020, "Modifying Memories in Transformer Models", section 3.
    """
    torch.manual_seed(task.seed)
    _check(task)
    lm, chosen = task.lm, task.plan
    new_rule, fisher = step_rules(task), _fisher(task)
    ball = build_constraint(chosen.norm, chosen.radius or 0.0, fisher)
    held = _held(task)
    root_answers = None if held is None else next_token_log_probabilities(held)
    material = material_of(task)
    parent = {} if chosen.preset.unmodified == "all" else task.parent
    elsewhere = {name: tensor for name, tensor in parent.items() if name not in set(chosen.names)}
    before: Trained | None = None
    with applied(lm, elsewhere):
        start = dict(parent)
        if material.initial is not None:
            before = _on_relation_facts(task, material.initial, start, ball, new_rule())
            start |= before.tensors
        # Contexts are read once: by the weights that training starts from.
        with applied(lm, {name: start[name] for name in chosen.names if name in start}):
            kind = kind_of(task, material)
            kept = None
            if held is not None and root_answers is not None:
                same = kind is ExampleSet and not _changed_below(task, parent)
                kept = Anchors(held if same else example_set(task, held.examples, kind=kind), root_answers)
            facts, objective = objective_of(task, material, kind)
        trainer = Trainer(lm, chosen.names, start, ball, new_rule(), _budget(task))
        at_most = _steps_at_most(task, len(facts) + len(material.unmodified), objective.epochs)
        trained = trainer.train(facts, kept, _reporter(task, at_most), objective)
        if kind is FrozenContexts:
            trained = _mended(task, material, {**start, **trained.tensors}, ball, new_rule(), kept, trained)
    tensors, changed = overlay_of(lm, parent, trained.tensors)
    return Edited(
        tensors=tensors,
        metrics={
            "steps": trained.steps,
            "edits_holding": trained.holding,
            "edits_total": trained.total,
            **change_metrics(lm, changed, chosen.radius if chosen.norm == "l_inf" else None),
            **_more_metrics(task, changed, fisher, before),
        },
        chosen=_choices(task, 0 if held is None else len(held), len(facts), len(material.unmodified)),
    )


def _mended(
    task: EditTask,
    material: Material,
    start: dict[str, Tensor],
    ball: Constraint,
    rule: StepRule,
    kept: Anchors | None,
    before: Trained,
) -> Trained:
    """Trained on, now on whole examples, where facts that held in frozen contexts do not hold in them."""
    facts, objective = objective_of(task, material)
    at_most = max(1, task.method.max_steps // MENDING)
    budget = replace(_budget(task), max_steps=at_most, repair=0.0)
    trainer = Trainer(task.lm, task.plan.names, start, ball, rule, budget)
    after = trainer.train(facts, kept, _reporter(task, budget.max_steps), objective)
    return replace(after, steps=before.steps + after.steps)


def _held(task: EditTask) -> ExampleSet | None:
    """The anchors as the root reads them, whose answers they are to keep, whatever the parent has become."""
    spec = task.plan.anchors
    prompts = task.anchors[: spec.count] if spec.weight > 0 else []
    return example_set(task, [next_token_example(task.lm, prompt) for prompt in prompts]) if prompts else None


def _changed_below(task: EditTask, parent: Overlay) -> bool:
    """Whether something else enters the first chosen block than in the root."""
    blocks = [task.lm.block_of(name) for name in parent.keys() - RESERVED]
    below = any(block is None or block < min(task.plan.blocks) for block in blocks)
    return below or bool(parent.keys() & RESERVED)


# Choices


def _check(task: EditTask) -> None:
    """Raises EditingError: what the model or the parent makes impossible."""
    preset, name = task.plan.preset, task.method.name
    if preset.target == "first_position" and task.lm.task != "causal":
        raise EditingError(f"`{name}` trains at the prompt's last token: causal models only; use ft_m.")
    if preset.unmodified == "all":
        left = task.parent.keys() - set(task.plan.names) - RESERVED
        if left:
            blocks = sorted({task.lm.block_of(tensor) or 0 for tensor in left})
            raise EditingError(
                f"`{name}` starts at the root, but the version it builds on has changed blocks {blocks} "
                "in matrices that it was not given: leave blocks and parameters out."
            )


def _fisher(task: EditTask) -> dict[str, Tensor] | None:
    """Of the root's weights, on evenly spread anchors, if the norm is `fisher`; call it under the root."""
    if task.plan.norm != "fisher":
        return None
    found = task.anchors[: task.plan.anchors.count]
    if not found:
        raise EditingError("The norm `fisher` is measured on unmodified facts; give anchors.")
    spread = found[:: -(-len(found) // FISHER_FACTS)]
    return fisher_diagonal(
        task.lm, task.plan.names, unmodified_examples(task.lm, spread), min(task.plan.blocks)
    )


def _budget(task: EditTask) -> TrainingPlan:
    return TrainingPlan(
        max_steps=task.method.max_steps,
        anchor_weight=task.plan.anchors.weight,
        batch_size=task.plan.preset.batch_size,
        anchor_batch=task.plan.preset.anchor_batch,
        repair=task.plan.preset.repair,
        seed=task.seed,
    )


def _steps_at_most(task: EditTask, examples: int, epochs: int | None) -> int:
    if epochs is None:
        return task.method.max_steps
    return min(task.method.max_steps, epochs * -(-examples // task.plan.preset.batch_size))


# The initial state


def _on_relation_facts(
    task: EditTask,
    known: tuple[list[Example], list[int]],
    start: dict[str, Tensor],
    ball: Constraint,
    rule: StepRule,
) -> Trained:
    """The chosen tensors fine-tuned on the anchors that are facts of the edited relations.

    Zhu et al. 2020, section 4, edit a model that was fine-tuned on the facts first. Here that too stays
    inside the ball around the root, so that its bound holds for the whole overlay.
    """
    trainer = Trainer(task.lm, task.plan.names, start, ball, rule, _budget(task))
    return trainer.train(example_set(task, *known), None, _reporter(task, task.method.max_steps))


# Reports


def _reporter(task: EditTask, max_steps: int) -> Callable[[Progress], None]:
    def report(state: Progress) -> None:
        task.progress(
            {
                "phase": "editing",
                "step": state.step,
                "max_steps": max_steps,
                "loss": round(state.loss, 4),
                "edits_holding": state.holding,
                "edits_total": state.total,
            }
        )

    return report


def _more_metrics(
    task: EditTask, changed: dict[str, Tensor], fisher: dict[str, Tensor] | None, before: Trained | None
) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if fisher is not None:
        device = task.lm.device
        moved = {name: tensor.to(device) for name, tensor in changed.items() if name in fisher}
        more["fisher_norm"] = distance_fisher(moved, {n: task.lm.tensors[n].data for n in moved}, fisher)
    if before is not None:
        more |= {"initial_steps": before.steps, "initial_facts_holding": before.holding}
    return more


def _choices(task: EditTask, anchors: int, examples: int, unmodified: int) -> dict[str, Any]:
    chosen = task.plan
    found: dict[str, Any] = {
        "method": task.method.name,
        "rule": chosen.preset.rule,
        "blocks": chosen.blocks,
        "parameters": chosen.parameters,
        "norm": chosen.norm,
        "radius": chosen.radius,
        "anchors": anchors,
        "examples": examples,
    }
    if unmodified:
        found["unmodified"] = unmodified
    if task.method.initial != "given":
        found["initial"] = task.method.initial
    return found
