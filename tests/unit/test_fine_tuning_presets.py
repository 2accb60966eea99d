"""The presets of fine-tuning: what all of them promise, from the root or from the relations' facts."""

from typing import Any

import pytest
import torch

from factedit.facts import Edit
from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.overlay import applied, root_digest
from factedit.presets import PRESETS
from factedit.prompts import answer_example, collate
from factedit.specs import Blocks, ConstraintSpec, MethodName
from factedit.task import Edited, EditingError
from factedit.unmodified import relation_examples
from tests.support.overlays import same
from tests.support.tiny_models import CITIES, COUNTRIES, LAYERS, PROMPT
from tests.support.tuned import ANCHORS, EDITS, NEW, edited, known_capitals

small_catalogue = pytest.fixture(known_capitals, autouse=True)


def assert_holds(lm: LanguageModel, result: Edited, *, stop: bool = True) -> None:
    with applied(lm, result.tensors), torch.no_grad():
        for item in EDITS:
            example = answer_example(lm, PROMPT.format(item.subject), item.new_object, stop=stop)
            batch = collate(lm, [example], [0])
            assert torch.equal(target_logits(lm, batch).argmax(-1), batch.targets)


def ball_of(name: MethodName, radius: float) -> ConstraintSpec:
    """One of that radius, for a method that has a ball by default."""
    bounded = PRESETS[name].constrained and PRESETS[name].norm != "none"
    return ConstraintSpec(radius=radius) if bounded else ConstraintSpec()


# What all of them promise


@pytest.mark.parametrize("name", [*NEW, "constrained_ftm", "ftm"])
def test_the_root_is_bit_identical_afterwards_and_something_else_is_not(
    lm: LanguageModel, name: MethodName
) -> None:
    before = root_digest(lm)
    result = edited(lm, name)
    assert root_digest(lm) == before
    assert result.tensors
    assert result.chosen["method"] == name
    assert not any(t.requires_grad or t.grad is not None for t in lm.tensors.values())


@pytest.mark.parametrize("name", NEW)
def test_the_same_seed_makes_the_same_bits(llama: LanguageModel, name: MethodName) -> None:
    assert same(edited(llama, name, seed=7).tensors, edited(llama, name, seed=7).tensors)


@pytest.mark.parametrize("name", ["fta", "retrain", "ft_m", "loc_ft", "crisp"])
def test_the_edits_hold(lm: LanguageModel, name: MethodName) -> None:
    blocks: Blocks = [LAYERS - 2, LAYERS - 1] if name == "crisp" else "auto"
    steps = {"max_steps": 500, **({"epochs": 60} if name == "retrain" else {})}
    result = edited(lm, name, blocks, method=steps, constraint=ball_of(name, 0.5))
    assert_holds(lm, result, stop=name != "ft_m")
    assert result.metrics["edits_holding"] == result.metrics["edits_total"] == len(EDITS)


@pytest.mark.parametrize("name", NEW)
def test_progress_never_says_more_steps_than_there_are(llama: LanguageModel, name: MethodName) -> None:
    told: list[dict[str, Any]] = []
    edited(llama, name, progress=told.append)
    assert told[-1]["step"] >= 1
    assert all(0 <= state["step"] <= state["max_steps"] for state in told)


@pytest.mark.parametrize("name", NEW)
def test_a_small_budget_of_steps_is_kept_to(llama: LanguageModel, name: MethodName) -> None:
    assert edited(llama, name, method={"max_steps": 2}).metrics["steps"] <= 2


# The initial state


@pytest.mark.parametrize("name", ["crisp", "constrained_ftm", "ftm", "fta", "loc_ft"])
def test_from_the_relations_facts_the_edits_hold_and_the_root_stays(
    llama: LanguageModel, name: MethodName
) -> None:
    before = root_digest(llama)
    result = edited(
        llama,
        name,
        [1, 2],
        method={"initial": "relation_facts", "max_steps": 500},
        constraint=ball_of(name, 2.0),
    )
    assert root_digest(llama) == before
    assert_holds(llama, result)
    assert result.metrics["initial_steps"] > 0
    assert result.metrics["initial_facts_holding"] == len(ANCHORS)
    assert result.chosen["initial"] == "relation_facts"
    assert not same(result.tensors, edited(llama, name, [1, 2], method={"max_steps": 500}).tensors)


def test_the_initial_state_is_inside_the_ball_around_the_root_as_well(llama: LanguageModel) -> None:
    result = edited(
        llama,
        "constrained_ftm",
        method={"initial": "relation_facts", "max_steps": 60},
        constraint=ConstraintSpec(norm="l_inf", radius=0.01),
    )
    assert result.metrics["max_abs_change"] <= 0.01 * (1 + 1e-5)
    assert {llama.block_of(n) for n in result.tensors} <= set(result.chosen["blocks"])


def test_the_relations_facts_are_those_among_the_anchors(llama: LanguageModel) -> None:
    prompts = [*ANCHORS, "The people of Norway speak"]
    examples, owner = relation_examples(llama, prompts, EDITS)
    assert examples == [
        answer_example(llama, PROMPT.format(c), o) for c, o in zip(COUNTRIES[2:], CITIES[2:], strict=True)
    ]
    assert owner == [0, 1, 2, 3]
    assert relation_examples(llama, prompts, [Edit("1", "France", "Rome", prompt="x")]) == ([], [])


def test_the_initial_state_needs_facts_of_an_edited_relation(llama: LanguageModel) -> None:
    alone = [Edit("1", "France", "Rome", prompt=PROMPT.format("France"))]
    before = root_digest(llama)
    with pytest.raises(EditingError, match="No anchor is a fact of an edited relation"):
        edited(llama, "ftm", edits=alone, method={"initial": "relation_facts"})
    assert root_digest(llama) == before
