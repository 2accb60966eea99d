"""Edit a model: facts to change in, a small overlay out, the root untouched (DESIGN.md, choices 1-3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factedit.blocks import choose_blocks
from factedit.constraints import build_constraint, distance_l2
from factedit.facts import Edit
from factedit.models import LanguageModel, iter_block_tensors
from factedit.overlay import applied
from factedit.prompts import Example, answer_example, next_token_example
from factedit.relations import Relation
from factedit.specs import Blocks, ConstraintSpec, MethodSpec
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

DEFAULT_RADIUS = {"l_inf": 5e-3, "l_2": 2.0, "none": 0.0}
"""Radius when none is asked for; measured on SmolLM2-135M (benchmarks/RESULTS.md)."""


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
) -> Edited:
    """Constrained fine-tuning of `edits` on top of `parent`, around the root.

    The ledger's earlier edits stay in the mix, so that they are kept; anchors are prompts whose
    next-token distribution is held to the root's. Deterministic for a seed on one device kind.

    Raises:
        EditingError: blocks out of range, or no tensor to train in them.
    """
    torch.manual_seed(seed)
    chosen = choose_blocks(lm.n_blocks, blocks)
    names = list(iter_block_tensors(lm, chosen, method.parameters))
    if not names:
        raise EditingError(f"Blocks {chosen} have no {method.parameters} matrices to train.")
    spec = ConstraintSpec(norm="none") if method.name == "ftm" else constraint
    radius = spec.radius if spec.radius is not None else DEFAULT_RADIUS[spec.norm]
    ball = build_constraint(spec, radius)
    examples, owner = training_examples(lm, [*edits, *ledger], relations)
    anchor_examples = [next_token_example(lm, prompt) for prompt in anchors]
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

    elsewhere = {name: tensor for name, tensor in parent.items() if name not in set(names)}
    with applied(lm, elsewhere):
        kept = None
        if root_answers is not None:
            kept = Anchors(
                ExampleSet(lm, anchor_examples, list(range(len(anchor_examples))), min(chosen)), root_answers
            )
        facts = ExampleSet(lm, examples, owner, min(chosen))
        plan = TrainingPlan(
            max_steps=method.max_steps,
            learning_rate=method.learning_rate,
            anchor_weight=method.anchors.weight,
            seed=seed,
        )
        trained = Trainer(lm, names, dict(parent), ball, plan).train(facts, kept, report)
    changed = {n: t.cpu() for n, t in trained.tensors.items() if not torch.equal(t, lm.tensors[n].data)}
    return Edited(
        tensors={**{n: t.cpu() for n, t in elsewhere.items()}, **changed},
        metrics=_metrics(lm, changed, radius if spec.norm == "l_inf" else None, trained),
        chosen={
            "method": "ftm" if spec.norm == "none" else "constrained_ftm",
            "blocks": chosen,
            "parameters": method.parameters,
            "norm": spec.norm,
            "radius": None if spec.norm == "none" else radius,
            "anchors": len(anchors),
            "examples": len(examples),
        },
    )


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
