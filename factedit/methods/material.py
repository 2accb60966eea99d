"""What fine-tuning is trained on: the facts that are to hold, and the unmodified ones beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from factedit.erasing import forgotten
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.frozen_context import FrozenContexts, can_freeze
from factedit.models import LanguageModel
from factedit.prompts import Example, answer_example, answers_inside
from factedit.relations import Relation
from factedit.task import EditingError, EditTask
from factedit.training import Objective
from factedit.unmodified import relation_examples, unmodified_examples
from factedit.wording import edit_prompt, ours_each, training_prompts

SHARE = 0.5
"""Of unmodified facts in a batch of FTA."""


def example_set(
    task: EditTask,
    examples: Sequence[Example],
    owner: Sequence[int] | None = None,
    kind: type[ExampleSet] = ExampleSet,
    **more: Any,
) -> ExampleSet:
    """Examples read from the first chosen block on; each is a fact of its own unless `owner` says more."""
    places = range(len(examples)) if owner is None else owner
    return kind(task.lm, examples, list(places), min(task.plan.blocks), **more)


@dataclass(frozen=True, slots=True)
class Material:
    """Examples in the words that the root reads, whatever notes the parent puts before them.

    Attributes:
        facts: every edit in force, new ones first, as it is to hold; `owner`: the edit each belongs to.
        wording: what stands for the facts in the loss; None: they themselves.
        unmodified: anchors with the answers that they are to keep.
        initial: facts of the edited relations, and the fact that each example belongs to.
    """

    facts: list[Example]
    owner: list[int]
    wording: list[Example] | None
    unmodified: list[Example]
    initial: tuple[list[Example], list[int]] | None


def material_of(task: EditTask) -> Material:
    """All that is trained on; call it under the root.

    Raises:
        EditingError: no unmodified facts where the method or the initial state needs some; NoWords.
    """
    preset, in_force = task.plan.preset, [*task.edits, *task.ledger]
    facts, owner = _facts(task, in_force)
    at_first = preset.target == "first_position"
    prompts = task.anchors[: task.plan.anchors.count]
    unmodified = [] if preset.unmodified == "none" else unmodified_examples(task.lm, prompts)
    if not unmodified and preset.unmodified != "none":
        raise EditingError(f"`{task.method.name}` needs unmodified facts; give anchors.")
    initial = None
    if task.method.initial == "relation_facts":
        initial = relation_examples(task.lm, prompts, in_force)
        if not initial[0]:
            raise EditingError(
                "No anchor is a fact of an edited relation: the initial state `relation_facts` needs edits "
                "in relations of the catalogue, and anchors."
            )
    return Material(facts, owner, [_at_first(e) for e in facts] if at_first else None, unmodified, initial)


def kind_of(task: EditTask, material: Material) -> type[ExampleSet]:
    """How the method's examples are computed while it trains; call it under what lies below them."""
    first = min(task.plan.blocks)
    frozen = task.plan.preset.frozen_contexts and can_freeze(task.lm, material.facts, first)
    return FrozenContexts if frozen else ExampleSet


def objective_of(
    task: EditTask, material: Material, kind: type[ExampleSet] = ExampleSet
) -> tuple[ExampleSet, Objective]:
    """The facts that are to hold and how they are trained; call it under what lies below them."""
    preset, in_force = task.plan.preset, [*task.edits, *task.ledger]
    asked = [(item, edit_prompt(item, task.relations)) for item in in_force]
    to_forget = forgotten(task.lm, [asked[place] for place in material.owner])
    share = SHARE if task.method.unmodified_share is None else task.method.unmodified_share
    wording, beside = material.wording, material.unmodified
    return example_set(task, material.facts, material.owner, kind, forgotten=to_forget), Objective(
        wording=None if wording is None else example_set(task, wording, material.owner, forgotten=to_forget),
        unmodified=example_set(task, beside) if beside else None,
        share=share if preset.unmodified == "mixed" else 0.0,
        epochs=None if preset.epochs is None else task.method.epochs or preset.epochs,
        enough=preset.enough,
    )


def _facts(task: EditTask, edits: Sequence[Edit]) -> tuple[list[Example], list[int]]:
    preset = task.plan.preset
    if not preset.own_prompt:
        ours = ours_each(len(edits)) if preset.other_words else 0
        return training_examples(task.lm, edits, task.relations, ours=ours)
    stop = preset.target == "answer_and_stop"
    asked = [(edit_prompt(item, task.relations), item.new_object) for item in edits]
    return [answer_example(task.lm, *one, stop=stop) for one in asked], list(range(len(asked)))


def _at_first(example: Example) -> Example:
    """The prompt alone, at whose last token all of the answer's tokens are expected at once (FT-L)."""
    first = example.positions[0]
    return replace(example, ids=example.ids[: first + 1], positions=tuple(first for _ in example.targets))


def training_examples(
    lm: LanguageModel,
    edits: Sequence[Edit],
    relations: Mapping[str, Relation],
    *,
    ours: int = 0,
    led_in: bool = True,
) -> tuple[list[Example], list[int]]:
    """Every prompt an edit is trained on, and the edit each belongs to; `led_in`: after a lead-in too.

    Only training templates and the user's own words; evaluation templates are never seen here.
    """
    examples: list[Example] = []
    owner: list[int] = []
    for place, item in enumerate(edits):
        # A sentence that holds its own answer has its context already, and is trained on as it stands.
        inside = answers_inside(lm, item.prompt or "")
        added = 0 if inside else ours
        for prompt in training_prompts(item, relations, place, ours=added, led_in=led_in and not inside):
            examples.append(answer_example(lm, prompt, item.new_object))
            owner.append(place)
    return examples, owner
