"""Edit a model: facts to change in, a small overlay out, the root untouched (DESIGN.md, choices 1-3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factedit.blocks import choose_blocks
from factedit.constraints import build_constraint, distance_l2
from factedit.curvature import Covariance, NoCurvature, Preconditioner, measure
from factedit.facts import Edit
from factedit.models import LanguageModel, iter_block_tensors
from factedit.overlay import applied
from factedit.presets import PRESETS, Preset
from factedit.prompts import Example, answer_example, next_token_example
from factedit.relations import Relation
from factedit.specs import AnchorSpec, Blocks, ConstraintSpec, MethodSpec, Norm
from factedit.steps import AdamSteps, NaturalSteps, StepRule
from factedit.training import (
    Anchors,
    ExampleSet,
    Progress,
    Trained,
    Trainer,
    TrainingPlan,
    next_token_log_probabilities,
)
from factedit.wording import training_prompts


class EditingError(Exception):
    """A batch that can't be trained as asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit yields.

    Attributes:
        tensors: the overlay: absolute new values in the root's dtype, the parent's included.
        metrics: steps, edits holding, norms of the change, share of weights at the bound.
        chosen: blocks, parameters, constraint and radius that were used.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, Any]
    chosen: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """A method's choices for one model, with nothing left open.

    Attributes:
        names: the tensors that may change.
        radius: None without a constraint.
    """

    preset: Preset
    blocks: list[int]
    parameters: str
    names: list[str]
    anchors: AnchorSpec
    norm: Norm
    radius: float | None


def plan(lm: LanguageModel, method: MethodSpec, blocks: Blocks, constraint: ConstraintSpec) -> Plan:
    """Fill in what the caller left open.

    Raises:
        NoSuchBlock; EditingError: the blocks have no such tensors.
    """
    preset = PRESETS[method.name]
    chosen = choose_blocks(lm.n_blocks, blocks, preset.depth)
    parameters = method.parameters or preset.parameters
    names = list(iter_block_tensors(lm, chosen, parameters))
    if not names:
        raise EditingError(f"Blocks {chosen} have no {parameters} matrices to train.")
    norm: Norm = "none" if method.name == "ftm" else constraint.norm
    radius = None if norm == "none" else constraint.radius or preset.radius[norm]
    return Plan(preset, chosen, parameters, names, method.anchors or preset.anchors, norm, radius)


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
) -> Edited:
    """Constrained fine-tuning of `edits` on top of `parent`, around the root.

    The ledger's earlier edits stay in the mix, so that they are kept; anchors are prompts whose
    next-token distribution is held to the root's. Deterministic for a seed on one device kind.

    Args:
        background: for `auto`, what enters the named matrices while the root reads unmodified
            facts (factedit.curvature); measured on the anchors where it is not given.

    Raises:
        NoSuchBlock; EditingError: no tensor to train, or none that the method can move.
    """
    torch.manual_seed(seed)
    chosen = plan(lm, method, blocks, constraint)
    rule = _step_rule(lm, chosen, method, background or (lambda names: measure(lm, names, anchors)))
    held = anchors[: chosen.anchors.count] if chosen.anchors.weight > 0 else []
    examples, owner = training_examples(lm, [*edits, *ledger], relations)
    anchor_examples = [next_token_example(lm, prompt) for prompt in held]
    # The anchors' answers are the root's own, whatever the parent has become since.
    root_answers = next_token_log_probabilities(lm, anchor_examples) if anchor_examples else None

    def report(state: Progress) -> None:
        progress(
            {
                "phase": "editing",
                "step": state.step,
                "max_steps": method.max_steps,
                "loss": round(state.loss, 4),
                "edits_holding": state.holding,
                "edits_total": state.total,
            }
        )

    elsewhere = {name: tensor for name, tensor in parent.items() if name not in set(chosen.names)}
    with applied(lm, elsewhere):
        first = min(chosen.blocks)
        kept = None
        if root_answers is not None:
            own = list(range(len(anchor_examples)))
            kept = Anchors(ExampleSet(lm, anchor_examples, own, first), root_answers)
        facts = ExampleSet(lm, examples, owner, first)
        ball = build_constraint(chosen.norm, chosen.radius or 0.0)
        budget = TrainingPlan(max_steps=method.max_steps, anchor_weight=chosen.anchors.weight, seed=seed)
        trained = Trainer(lm, chosen.names, dict(parent), ball, rule, budget).train(facts, kept, report)
    changed = {n: t.cpu() for n, t in trained.tensors.items() if not torch.equal(t, lm.tensors[n].data)}
    return Edited(
        tensors={**{n: t.cpu() for n, t in elsewhere.items()}, **changed},
        metrics=_metrics(lm, changed, chosen.radius if chosen.norm == "l_inf" else None, trained),
        chosen={
            "method": method.name,
            "rule": chosen.preset.rule,
            "blocks": chosen.blocks,
            "parameters": chosen.parameters,
            "norm": chosen.norm,
            "radius": chosen.radius,
            "anchors": len(held),
            "examples": len(examples),
        },
    )


def _step_rule(
    lm: LanguageModel, chosen: Plan, method: MethodSpec, background: Callable[[Sequence[str]], Covariance]
) -> StepRule:
    if chosen.preset.rule == "adam":
        return AdamSteps(method.learning_rate)
    try:
        covariance = background(chosen.names)
    except NoCurvature as error:
        raise EditingError(f"{error} Use the method constrained_ftm for this model.") from error
    if covariance.tokens == 0:
        raise EditingError("`auto` needs unmodified facts to measure what is to be left alone; give anchors.")
    return NaturalSteps(Preconditioner(lm, covariance, method.damping))


def training_examples(
    lm: LanguageModel, edits: Sequence[Edit], relations: Mapping[str, Relation]
) -> tuple[list[Example], list[int]]:
    """Every prompt an edit is trained on, and the edit each belongs to.

    Only training templates and the user's own words; evaluation templates are never seen here.
    """
    examples: list[Example] = []
    owner: list[int] = []
    for place, item in enumerate(edits):
        for prompt in training_prompts(item, relations, place):
            examples.append(answer_example(lm, prompt, item.new_object))
            owner.append(place)
    return examples, owner


def _metrics(
    lm: LanguageModel, changed: Mapping[str, Tensor], radius: float | None, trained: Trained
) -> dict[str, Any]:
    roots = {name: lm.tensors[name].data for name in changed}
    moved = {n: (changed[n].to(lm.device).double() - roots[n].double()).abs() for n in changed}
    total = sum(t.numel() for t in moved.values())
    at_bound = sum(int((t >= 0.95 * radius).sum()) for t in moved.values()) if radius else 0
    return {
        "steps": trained.steps,
        "edits_holding": trained.holding,
        "edits_total": trained.total,
        "changed_tensors": sorted(changed),
        "max_abs_change": max((float(t.max()) for t in moved.values()), default=0.0),
        "l2_norm": distance_l2(changed, {n: t.cpu() for n, t in roots.items()}),
        "share_at_bound": at_bound / total if radius and total else None,
    }
