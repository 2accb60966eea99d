"""Constrained fine-tuning: every preset of it is a point in one space (DESIGN.md, choice 1)."""

from collections.abc import Mapping, Sequence

import torch

from factedit.constraints import build_constraint
from factedit.curvature import NoCurvature, Preconditioner
from factedit.erasing import forgotten
from factedit.facts import Edit
from factedit.models import LanguageModel
from factedit.overlay import applied
from factedit.prompts import Example, answer_example, next_token_example
from factedit.relations import Relation
from factedit.steps import AdamSteps, NaturalSteps, StepRule
from factedit.task import Edited, EditingError, EditTask, change_metrics, overlay_of
from factedit.training import (
    Anchors,
    ExampleSet,
    Progress,
    Trainer,
    TrainingPlan,
    next_token_log_probabilities,
)
from factedit.wording import training_prompts


def fine_tune(task: EditTask) -> Edited:
    """Constrained fine-tuning of the new edits on top of the parent, around the root.

    The ledger's earlier edits stay in the mix, so that they are kept; anchors are prompts whose
    next-token distribution is held to the root's.

    Source: Zhu et al. 2020, "Modifying Memories in Transformer Models", section 3.
    """
    torch.manual_seed(task.seed)
    lm, chosen, method = task.lm, task.plan, task.method
    rule = _step_rule(task)
    held = task.anchors[: chosen.anchors.count] if chosen.anchors.weight > 0 else []
    in_force = [*task.edits, *task.ledger]
    examples, owner = training_examples(lm, in_force, task.relations)
    anchor_examples = [next_token_example(lm, prompt) for prompt in held]
    # The anchors' answers are the root's own, whatever the parent has become since.
    root_answers = next_token_log_probabilities(lm, anchor_examples) if anchor_examples else None

    def report(state: Progress) -> None:
        task.progress(
            {
                "phase": "editing",
                "step": state.step,
                "max_steps": method.max_steps,
                "loss": round(state.loss, 4),
                "edits_holding": state.holding,
                "edits_total": state.total,
            }
        )

    elsewhere = {name: tensor for name, tensor in task.parent.items() if name not in set(chosen.names)}
    with applied(lm, elsewhere):
        first = min(chosen.blocks)
        kept = None
        if root_answers is not None:
            own = list(range(len(anchor_examples)))
            kept = Anchors(ExampleSet(lm, anchor_examples, own, first), root_answers)
        to_forget = forgotten(lm, [in_force[place] for place in owner])
        facts = ExampleSet(lm, examples, owner, first, to_forget)
        ball = build_constraint(chosen.norm, chosen.radius or 0.0)
        budget = TrainingPlan(max_steps=method.max_steps, anchor_weight=chosen.anchors.weight, seed=task.seed)
        trained = Trainer(lm, chosen.names, dict(task.parent), ball, rule, budget).train(facts, kept, report)
    tensors, changed = overlay_of(lm, task.parent, trained.tensors)
    return Edited(
        tensors=tensors,
        metrics={
            "steps": trained.steps,
            "edits_holding": trained.holding,
            "edits_total": trained.total,
            **change_metrics(lm, changed, chosen.radius if chosen.norm == "l_inf" else None),
        },
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


def _step_rule(task: EditTask) -> StepRule:
    if task.plan.preset.rule == "adam":
        return AdamSteps(task.method.learning_rate)
    try:
        covariance = task.background(task.plan.names)
    except NoCurvature as error:
        raise EditingError(f"{error} Use the method constrained_ftm for this model.") from error
    if covariance.tokens == 0:
        raise EditingError("`auto` needs unmodified facts to measure what is to be left alone; give anchors.")
    return NaturalSteps(Preconditioner(task.lm, covariance, task.method.damping))


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
