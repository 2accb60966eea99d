"""ft_l, ft_m and loc_ft: fine-tuning of one matrix."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from factedit import training
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.models import LanguageModel
from factedit.presets import PRESETS
from factedit.specs import ConstraintSpec, MethodName, MethodSpec
from factedit.task import EditingError, plan
from tests.support.overlays import same
from tests.support.tiny_models import COUNTRIES, PROMPT, tiny_model
from tests.support.tuned import EDITS, edited, known_capitals, trained_batches

small_catalogue = pytest.fixture(known_capitals, autouse=True)
batches = pytest.fixture(trained_batches)

ONE_MATRIX: tuple[MethodName, ...] = ("ft_l", "ft_m", "loc_ft")


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
