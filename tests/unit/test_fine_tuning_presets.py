"""The presets of fine-tuning: what each changes, what it trains on, and that the root stays as it is."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factedit import training, unmodified
from factedit.constraints import distance_fisher
from factedit.editing import edit
from factedit.example_sets import ExampleSet
from factedit.facts import Edit, Fact
from factedit.fisher import fisher_diagonal
from factedit.forward import target_logits
from factedit.holding import Anchors, holding, next_token_log_probabilities
from factedit.kronecker import Factors, kronecker_factors
from factedit.methods import step_rules
from factedit.models import LanguageModel
from factedit.overlay import applied, root_digest
from factedit.presets import PRESETS, anchors_of
from factedit.prompts import answer_example, collate, next_token_example
from factedit.relations import Relation, builtin_catalogue, is_probe
from factedit.running_text import RunningText
from factedit.specs import AnchorSpec, Blocks, ConstraintSpec, MethodName, MethodSpec
from factedit.task import Edited, EditingError, plan
from factedit.unmodified import facts_by_prompt, relation_examples, unmodified_examples
from tests.support.tiny_models import CITIES, COUNTRIES, LAYERS, PROMPT, tiny_model

ANCHORS = [PROMPT.format(country) for country in COUNTRIES[2:]]
RELATIONS = {"capital": Relation("capital", (PROMPT.format("{subject}"),))}
EDITS = [
    Edit(id="1", subject="France", relation="capital", new_object="Rome"),
    Edit(id="2", subject="Italy", relation="capital", new_object="New York"),
]
NEW: tuple[MethodName, ...] = ("crisp", "fta", "retrain", "ft_l", "ft_m", "loc_ft")
ONE_MATRIX: tuple[MethodName, ...] = ("ft_l", "ft_m", "loc_ft")


@pytest.fixture(autouse=True)
def small_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every country's capital, as if each were an anchor's."""
    facts = {PROMPT.format(c): Fact(c, "capital", o) for c, o in zip(COUNTRIES, CITIES, strict=True)}
    monkeypatch.setattr(unmodified, "_known", lambda: facts)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[int], list[int]]]]:
    """The batches that are trained on: places of modified and of unmodified examples."""
    seen: list[tuple[list[int], list[int]]] = []
    backward = training.Trainer._backward

    def watched(self: Any, facts: ExampleSet, step: Any, *rest: Any) -> float:
        seen.append(step)
        return backward(self, facts, step, *rest)

    monkeypatch.setattr(training.Trainer, "_backward", watched)
    yield seen


def edited(lm: LanguageModel, name: MethodName, blocks: Blocks = "auto", **more: Any) -> Edited:
    options: dict[str, Any] = {"learning_rate": 0.02, **more.pop("method", {})}
    given: dict[str, Any] = {
        "parent": {},
        "edits": EDITS,
        "ledger": (),
        "anchors": ANCHORS,
        "constraint": ConstraintSpec(),
        "progress": lambda _: None,
        "seed": 0,
        **more,
    }
    return edit(lm, relations=RELATIONS, method=MethodSpec(name=name, **options), blocks=blocks, **given)


def assert_holds(lm: LanguageModel, result: Edited, *, stop: bool = True) -> None:
    with applied(lm, result.tensors), torch.no_grad():
        for item in EDITS:
            example = answer_example(lm, PROMPT.format(item.subject), item.new_object, stop=stop)
            batch = collate(lm, [example], [0])
            assert torch.equal(target_logits(lm, batch).argmax(-1), batch.targets)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


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


def ball_of(name: MethodName, radius: float) -> ConstraintSpec:
    """One of that radius, for a method that has a ball by default."""
    bounded = PRESETS[name].constrained and PRESETS[name].norm != "none"
    return ConstraintSpec(radius=radius) if bounded else ConstraintSpec()


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


# One matrix: ft_l, ft_m, loc_ft


@pytest.mark.parametrize("name", ONE_MATRIX)
def test_exactly_one_mlp_out_matrix_changes(lm: LanguageModel, name: MethodName) -> None:
    (changed,) = edited(lm, name).tensors
    (block,) = edited(lm, name).chosen["blocks"]
    assert [changed] == lm.block_tensors(block, "mlp_out")


def test_it_is_layer_21_of_30() -> None:
    class Thirty:
        n_blocks = 30

        def block_tensors(self, block: int, parameters: str) -> list[str]:
            return [f"{block}.{parameters}"]

    for name in ONE_MATRIX:
        chosen = plan(Thirty(), MethodSpec(name=name), "auto", ConstraintSpec())  # type: ignore[arg-type]
        assert (chosen.names, chosen.norm, chosen.radius) == (["21.mlp_out"], "none", None)


@pytest.mark.parametrize("name", ONE_MATRIX)
def test_25_steps_are_taken_at_most_for_a_batch_that_fits_into_one(
    llama: LanguageModel, name: MethodName
) -> None:
    assert edited(llama, name, method={"learning_rate": 1e-6}).metrics["steps"] == 25
    assert edited(llama, name, method={"learning_rate": 1e-6, "epochs": 3}).metrics["steps"] == 3


@pytest.mark.parametrize("name", ["ft_m", "loc_ft"])
def test_batches_below_the_loss_that_is_enough_are_passed_over_and_training_ends(
    llama: LanguageModel,
    name: MethodName,
    batches: list[tuple[list[int], list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of a random model's two layers one matrix does not bring the loss down to 1e-2.
    assert PRESETS[name].enough == 1e-2
    monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], enough=0.5, batch_size=1))
    losses: list[float] = []
    done = edited(llama, name, method={"epochs": 500}, progress=lambda state: losses.append(state["loss"]))
    assert min(losses) >= 0.5  # a step was taken on none that was below
    assert done.metrics["steps"] == len(losses) < len(batches) < 1000
    batches.clear()
    again = edited(llama, name, parent=done.tensors)
    assert (again.metrics["steps"], len(batches)) == (0, len(EDITS))  # one epoch to see that all is well
    assert same(again.tensors, done.tensors)


def test_ft_l_trains_all_target_tokens_at_the_prompts_last_token(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ExampleSet] = []
    backward = training.Trainer._answers_backward

    def watched(self: Any, examples: ExampleSet, *rest: Any) -> float:
        seen.append(examples)
        return backward(self, examples, *rest)

    monkeypatch.setattr(training.Trainer, "_answers_backward", watched)
    edited(llama, "ft_l")
    asked = seen[0].examples
    prompts = [list(llama.tokenizer(PROMPT.format(item.subject))["input_ids"]) for item in EDITS]
    words = [llama.tokenizer(item.new_object)["input_ids"] for item in EDITS]
    assert [list(e.ids) for e in asked] == prompts
    assert [list(e.targets) for e in asked] == words
    assert [set(e.positions) for e in asked] == [{len(prompt) - 1} for prompt in prompts]


def test_ft_ls_first_loss_is_easyedits_prompt_last_formula(llama: LanguageModel) -> None:
    losses: list[float] = []
    edited(
        llama,
        "ft_l",
        edits=EDITS[1:],
        method={"epochs": 1},
        progress=lambda state: losses.append(state["loss"]),
    )
    with torch.no_grad():
        ids = torch.tensor([llama.tokenizer(PROMPT.format("Italy"))["input_ids"]])
        logs = llama.model(input_ids=ids).logits[0, -1].log_softmax(-1)
    new, york = llama.tokenizer("New York")["input_ids"]
    assert losses == [pytest.approx(float(-(logs[new] + logs[york]) / 2), abs=1e-3)]


def test_ft_m_trains_no_end_of_sequence_and_loc_ft_does(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ExampleSet] = []
    failing = training.Trainer._failing

    def watched(self: Any, facts: ExampleSet) -> list[int]:
        seen.append(facts)
        return failing(self, facts)

    monkeypatch.setattr(training.Trainer, "_failing", watched)
    for name, stops in (("ft_m", False), ("loc_ft", True)):
        seen.clear()
        edited(llama, name, method={"epochs": 1})  # type: ignore[arg-type]
        assert len(seen[0].examples) == len(EDITS)  # the edit's own prompt and no other
        assert [e.targets[-1] == llama.eos_token_id for e in seen[0].examples] == [stops, stops]


def test_ft_l_takes_a_small_l_inf_ball_where_one_is_asked_for(llama: LanguageModel) -> None:
    result = edited(llama, "ft_l", constraint=ConstraintSpec(norm="l_inf"))
    assert result.chosen["radius"] == 5e-5
    assert 0 < result.metrics["max_abs_change"] <= 5e-5 * (1 + 1e-5)


def test_ft_l_is_for_causal_models(tmp_path: Path) -> None:
    bert = tiny_model(tmp_path, "bert")
    with pytest.raises(EditingError, match="causal models only; use ft_m"):
        edited(bert, "ft_l")
    assert len(edited(bert, "ft_m").tensors) == 1


def test_loc_ft_sees_every_edit_once_an_epoch(
    llama: LanguageModel, batches: list[tuple[list[int], list[int]]]
) -> None:
    many = [Edit(str(i), f"{COUNTRIES[i % 6]} {i}", "Rome", relation="capital") for i in range(150)]
    edited(llama, "loc_ft", edits=many, method={"epochs": 2, "learning_rate": 1e-6})
    size = PRESETS["loc_ft"].batch_size
    turns = -(-150 // size)
    assert [len(chosen) for chosen, _ in batches] == [*[size] * (turns - 1), 150 - size * (turns - 1)] * 2
    epochs = [[edit for chosen, _ in batches[i : i + turns] for edit in chosen] for i in (0, turns)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(150))] * 2
    assert epochs[0] != epochs[1]


# Unmodified facts: fta, retrain


@pytest.mark.parametrize("share", [None, 0.25, 0.5, 0.8])
def test_fta_mixes_the_asked_share(
    llama: LanguageModel, batches: list[tuple[list[int], list[int]]], share: float | None
) -> None:
    many = [Edit(str(i), f"{COUNTRIES[i % 6]} {i}", "Rome", relation="capital") for i in range(12)]
    edited(llama, "fta", edits=many, method={"unmodified_share": share, "max_steps": 4})
    wanted = 0.5 if share is None else share
    assert batches
    for chosen, beside in batches:
        assert len(beside) == round(len(chosen) * wanted / (1 - wanted))


def test_fta_teaches_the_unmodified_facts_their_true_objects(llama: LanguageModel) -> None:
    result = edited(llama, "fta", method={"unmodified_share": 0.8, "max_steps": 500})
    examples = [
        answer_example(llama, PROMPT.format(c), o) for c, o in zip(COUNTRIES[2:], CITIES[2:], strict=True)
    ]
    with applied(llama, result.tensors):
        assert sum(holding(llama, examples)) >= 3
    assert result.chosen["unmodified"] == len(ANCHORS)


def test_fta_has_no_ball_unless_one_is_given(llama: LanguageModel) -> None:
    assert edited(llama, "fta").chosen["norm"] == "none"
    bounded = edited(llama, "fta", constraint=ConstraintSpec(norm="l_inf", radius=0.01))
    assert bounded.metrics["max_abs_change"] <= 0.01 * (1 + 1e-5)


def test_a_prompt_of_no_known_fact_keeps_the_roots_own_next_token(lm: LanguageModel) -> None:
    prompts = ["The people of Norway speak", ANCHORS[0], "Rome lies in"]
    found = unmodified_examples(lm, prompts)
    assert found[1] == answer_example(lm, ANCHORS[0], "Berlin")
    for prompt, example in ((prompts[0], found[0]), (prompts[2], found[2])):
        ids = list(lm.tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            assert example.targets == (int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()),)


@pytest.mark.parametrize("name", ["fta", "retrain"])
def test_without_unmodified_facts_it_is_refused(llama: LanguageModel, name: MethodName) -> None:
    with pytest.raises(EditingError, match="give anchors"):
        edited(llama, name, anchors=[])
    with pytest.raises(EditingError, match="give anchors"):
        edited(llama, name, method={"anchors": AnchorSpec(count=0)})


def test_retrain_may_move_every_block(llama: LanguageModel) -> None:
    result = edited(llama, "retrain")
    assert {llama.block_of(name) for name in result.tensors} == set(range(LAYERS))
    assert (result.chosen["norm"], result.chosen["unmodified"]) == ("none", len(ANCHORS))


def test_retrain_goes_over_edits_and_unmodified_facts_alike(
    llama: LanguageModel, batches: list[tuple[list[int], list[int]]]
) -> None:
    result = edited(llama, "retrain")
    modified = result.chosen["examples"]
    assert len(batches) == 5  # epochs of one batch each
    for chosen, beside in batches:
        assert (sorted(chosen), sorted(beside)) == (list(range(modified)), list(range(len(ANCHORS))))


def test_retrain_starts_at_the_root_whatever_the_parent(llama: LanguageModel) -> None:
    parent = edited(llama, "ft_m").tensors
    again = edited(llama, "retrain", parent=parent)
    assert same(again.tensors, edited(llama, "retrain").tensors)
    with pytest.raises(EditingError, match=r"changed blocks \[1\]"):
        edited(llama, "retrain", [2], parent=parent)


def test_no_probe_is_ever_trained_on() -> None:
    known = facts_by_prompt(builtin_catalogue())
    assert len(known) > 1000
    assert not [fact for fact in known.values() if is_probe(fact.subject)]
    scored = {
        prompt
        for fact in known.values()
        for prompt in builtin_catalogue().relations[fact.relation].evaluation_prompts(fact.subject)
    }
    assert not scored & known.keys()


# The Fisher ball


@pytest.mark.parametrize("name", ["constrained_ftm", "fta", "crisp", "ft_m"])
def test_an_edit_stays_inside_the_fisher_ball(lm: LanguageModel, name: MethodName) -> None:
    before = root_digest(lm)
    result = edited(lm, name, [1, 2], constraint=ConstraintSpec(norm="fisher", radius=0.05))
    assert root_digest(lm) == before
    names = plan(lm, MethodSpec(name=name), [1, 2], ConstraintSpec()).names
    fisher = fisher_diagonal(lm, names, unmodified_examples(lm, ANCHORS), 1)
    roots = {n: lm.tensors[n].data for n in result.tensors}
    assert 0 < distance_fisher(result.tensors, roots, fisher) <= 0.05 * (1 + 1e-4)
    assert result.metrics["fisher_norm"] == pytest.approx(
        distance_fisher(result.tensors, roots, fisher), rel=1e-3
    )


def test_the_fisher_information_is_the_roots_whatever_the_parent(llama: LanguageModel) -> None:
    ball = ConstraintSpec(norm="fisher", radius=0.05)
    parent = edited(llama, "ftm", [0]).tensors
    child = edited(llama, "constrained_ftm", [1], parent=parent, ledger=EDITS, edits=[], constraint=ball)
    assert all(torch.equal(child.tensors[name], parent[name]) for name in parent)
    if moved := {n: t for n, t in child.tensors.items() if n not in parent}:
        fisher = fisher_diagonal(llama, llama.block_tensors(1, "mlp"), unmodified_examples(llama, ANCHORS), 1)
        assert distance_fisher(moved, {n: llama.tensors[n].data for n in moved}, fisher) <= 0.05 * (1 + 1e-4)


def test_the_fisher_ball_needs_unmodified_facts(llama: LanguageModel) -> None:
    with pytest.raises(EditingError, match="`fisher` is measured on unmodified facts; give anchors"):
        edited(llama, "constrained_ftm", anchors=[], constraint=ConstraintSpec(norm="fisher"))
    assert anchors_of(MethodSpec(name="loc_ft"), "fisher").count > 0
    assert anchors_of(MethodSpec(name="loc_ft"), "l_inf").count == 0
    assert anchors_of(MethodSpec(name="loc_ft", initial="relation_facts"), "l_inf").count > 0


# Kept out of directions of high curvature: crisp


@pytest.mark.parametrize(
    ("anchors", "texts"), [(ANCHORS, []), ([], ["Rome lies in Italy", "Oslo lies in Norway"])]
)
def test_crisp_is_measured_on_anchors_and_running_text_whichever_there_are(
    llama: LanguageModel, anchors: list[str], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []

    def watched(lm: LanguageModel, names: list[str], texts: list[str], *rest: int) -> Mapping[str, Factors]:
        read.append(texts)
        return kronecker_factors(lm, names, texts, *rest)

    monkeypatch.setattr(step_rules, "kronecker_factors", watched)
    assert edited(llama, "crisp", anchors=anchors, texts=RunningText.of(llama, texts)).tensors
    assert read == [[*texts, *anchors]]


def test_crisp_is_refused_where_there_are_neither(llama: LanguageModel) -> None:
    with pytest.raises(EditingError, match="`crisp` needs unmodified facts to measure"):
        edited(llama, "crisp", anchors=[])


def test_running_text_is_asked_for_by_methods_that_read_it(llama: LanguageModel) -> None:
    asked = {name: plan(llama, MethodSpec(name=name), "auto", ConstraintSpec()).reads_texts for name in NEW}
    assert [name for name, reads in asked.items() if reads] == ["crisp"]


def test_the_more_curvature_is_left_open_the_more_crisp_bends_what_is_unmodified(
    llama: LanguageModel,
) -> None:
    def bent(damping: float) -> float:
        made = edited(llama, "crisp", method={"damping": damping, "learning_rate": 2e-3, "max_steps": 1})
        with applied(llama, made.tensors), torch.no_grad():
            return float(kept.divergence(range(len(ANCHORS))))

    examples = [next_token_example(llama, prompt) for prompt in ANCHORS]
    held = ExampleSet(llama, examples, list(range(len(ANCHORS))), 0)
    kept = Anchors(held, next_token_log_probabilities(held))
    assert bent(0.02) < bent(0.3) < bent(0.99)


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
