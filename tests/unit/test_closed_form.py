"""Closed-form editors: each equation against normal equations written out, then edits of tiny models."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factedit.editing import edit
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.forward import target_logits
from factedit.methods.keys import (
    Lookups,
    contexts,
    lookups,
    read_inputs,
    read_outputs,
)
from factedit.methods.least_squares import (
    RunningMoments,
    in_null_space,
    null_space,
    protected,
    rank_one,
    ridge_regression,
    unused_directions,
)
from factedit.methods.rome import _different_subjects
from factedit.methods.values import Values, seek_values
from factedit.methods.weights import layer
from factedit.models import LanguageModel
from factedit.overlay import applied, root_digest
from factedit.prompts import Example, answer_example, collate
from factedit.specs import Blocks, ConstraintSpec, MethodSpec
from factedit.task import Edited, EditingError
from tests.support.tiny_models import COUNTRIES, LAYERS, PROMPT, tiny_model

METHODS = ("rome", "memit", "alphaedit", "ultraedit")
ANCHORS = [PROMPT.format(country) for country in COUNTRIES[2:]]
EDITS = [
    Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome"),
    Edit(id="2", subject="Italy", prompt=PROMPT.format("Italy"), new_object="New York"),
]
NONE = torch.zeros(0, 6)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def covariance(rank: int, size: int = 6) -> Tensor:
    """Of background keys that use only `rank` directions."""
    keys = random(50, rank, seed=1) @ random(rank, size, seed=2)
    return keys.T @ keys / 50


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left.double(), right.double(), atol=1e-4, rtol=1e-4)


# The equations


def test_romes_change_makes_the_value_of_its_key() -> None:
    key, weight, value = random(6), random(4, 6, seed=3), random(4, seed=4)
    (direction,) = unused_directions(covariance(6), key[None])
    change = rank_one(direction, key, value - weight @ key)
    assert torch.linalg.matrix_rank(change) == 1
    close((weight + change) @ key, value)


def test_romes_change_is_the_one_that_moves_the_background_least() -> None:
    spread, key, residual = covariance(6), random(6), random(4, seed=4)
    # Minimise tr(D C D^T) under D key = residual, row by row, by the Lagrange conditions.
    system = torch.zeros(7, 7)
    system[:6, :6], system[:6, 6], system[6, :6] = 2 * spread, key, key
    rows = []
    for wanted in residual:
        right = torch.zeros(7)
        right[6] = wanted
        rows.append(torch.linalg.solve(system.double(), right.double())[:6])
    (direction,) = unused_directions(spread, key[None])
    close(rank_one(direction, key, residual), torch.stack(rows))


def test_romes_change_of_a_plain_case_is_the_one_by_hand() -> None:
    # C = diag(1, 4), key (1, 1): C^-1 key = (1, 1/4), and key . C^-1 key = 5/4.
    (direction,) = unused_directions(torch.diag(torch.tensor([1.0, 4.0])), torch.ones(1, 2))
    close(direction, torch.tensor([1.0, 0.25]))
    change = rank_one(direction, torch.ones(2), torch.tensor([5.0]))
    close(change, torch.tensor([[4.0, 1.0]]))


def test_memits_change_solves_its_least_squares() -> None:
    spread, keys, residuals, kept = covariance(6), random(3, 6), random(3, 4, seed=5), random(2, 6, seed=6)
    # Rows of background sqrt(10 C) and of kept keys are wanted to yield zero.
    root = torch.linalg.cholesky(10 * spread).T
    rows = torch.cat([root, keys, kept])
    wanted = torch.cat([torch.zeros(6, 4), residuals, torch.zeros(2, 4)])
    solved = torch.linalg.lstsq(rows.double(), wanted.double()).solution.T
    close(protected(spread, 10.0, keys, kept, residuals), solved)


def test_memit_keeps_the_kept_keys() -> None:
    spread, keys, residuals, kept = covariance(6), random(1, 6), random(1, 4, seed=5), random(1, 6, seed=6)
    free = protected(spread, 1e-4, keys, NONE, residuals)
    held = protected(spread, 1e-4, keys, kept, residuals)
    assert (free @ kept[0]).norm() > 0.1
    assert (held @ kept[0]).norm() < 1e-2
    close((held @ keys[0]).float(), residuals[0].float() * float((held @ keys[0])[0] / residuals[0, 0]))


def test_the_null_space_is_what_the_background_does_not_use() -> None:
    spread = covariance(4)
    basis = null_space(spread, 1e-3)
    assert basis.shape == (6, 2)
    close(basis.T @ basis, torch.eye(2))
    close(spread.double() @ basis, torch.zeros(6, 2))


def test_alphaedit_moves_no_background_key() -> None:
    spread, keys, residuals = covariance(4), random(2, 6), random(2, 4, seed=5)
    change = in_null_space(null_space(spread, 1e-3), 1e-6, keys, NONE, residuals)
    close(change @ spread, torch.zeros(4, 6))
    close(change @ keys.T, residuals.T)


def test_alphaedits_solution_is_the_papers() -> None:
    spread, keys, residuals, kept = covariance(3), random(4, 6), random(4, 5, seed=5), random(2, 6, seed=6)
    basis = null_space(spread, 1e-3)
    projector = basis @ basis.T
    k, old = keys.double() @ projector, kept.double() @ projector
    ridge = 0.3 * float(k.square().sum(1).mean())
    papers = residuals.double().T @ k @ torch.linalg.inv(k.T @ k + old.T @ old + ridge * torch.eye(6))
    close(in_null_space(basis, 0.3, keys, kept, residuals), papers)


@pytest.mark.parametrize("count", [3, 20], ids=["fewer rows than columns", "more"])
def test_ultraedits_change_solves_its_ridge_regression(count: int) -> None:
    keys, kept, values = random(count, 6), random(2, 6, seed=6), random(count, 4, seed=5)
    rows = torch.cat([keys, kept, 2**0.5 * torch.eye(6)])
    wanted = torch.cat([values, torch.zeros(8, 4)])
    solved = torch.linalg.lstsq(rows.double(), wanted.double()).solution.T
    close(ridge_regression(keys, kept, values, 2.0), solved)


def test_running_moments_are_those_of_all_rows_at_once() -> None:
    rows = 3 + 2 * random(37, 5)
    moments = RunningMoments(5, rows.device)
    for part in (rows[:1], rows[1:20], rows[20:20], rows[20:]):
        moments.update(part)
    close(moments.mean, rows.mean(0))
    close(moments.std, rows.std(0))
    close(moments.normalise(rows), (rows - rows.mean(0)) / rows.std(0))


def test_a_column_that_does_not_vary_is_normalised_to_zero() -> None:
    moments = RunningMoments(2, torch.device("cpu"))
    rows = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    moments.update(rows)
    assert moments.normalise(rows)[:, 1].tolist() == [0.0, 0.0]


# Edits of tiny models


def edited(lm: LanguageModel, name: Any, blocks: Blocks | None = None, **more: Any) -> Edited:
    options: dict[str, Any] = {"parent": {}, "edits": EDITS, "ledger": (), "progress": lambda _: None, **more}
    options.setdefault("method", MethodSpec(name=name))
    options.setdefault("anchors", ANCHORS)
    return edit(
        lm,
        relations={},
        blocks=blocks or ([1] if name == "rome" else [0, 1]),
        constraint=ConstraintSpec(),
        seed=3,
        **options,
    )


def first_position(example: Example) -> Example:
    return Example(example.ids, example.positions[:1], example.targets[:1])


def answer_loss(lm: LanguageModel, tensors: dict[str, Tensor]) -> float:
    """Of all the edits' answers and their ends, per token."""
    examples = [answer_example(lm, item.prompt or "", item.new_object) for item in EDITS]
    batch = collate(lm, examples, range(len(EDITS)))
    with applied(lm, tensors), torch.no_grad():
        return float(torch.nn.functional.cross_entropy(target_logits(lm, batch), batch.targets))


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_makes_its_answers_likelier(lm: LanguageModel, name: str) -> None:
    # A random model has few blocks to carry a fact from its subject to its answer: write at the first.
    result = edited(lm, name, "first")
    assert answer_loss(lm, result.tensors) < answer_loss(lm, {}) - 0.05


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_moves_its_blocks_alone(lm: LanguageModel, name: str) -> None:
    before = root_digest(lm)
    result = edited(lm, name)
    assert root_digest(lm) == before
    chosen = [1] if name == "rome" else [0, 1]
    assert set(result.tensors) == {n for b in chosen for n in lm.block_tensors(b, "mlp_out")}
    assert all(t.dtype == lm.tensors[n].dtype for n, t in result.tensors.items())
    assert result.metrics["edits_total"] == 2
    assert result.metrics["l2_norm"] > 0
    assert result.chosen["blocks"] == chosen and result.chosen["norm"] == "none"


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_the_blocks_together_reach_the_value(lm: LanguageModel, name: str, monkeypatch: Any) -> None:
    wanted: list[Tensor] = []

    def noted(*args: Any) -> Values:
        values = seek_values(*args)
        wanted.append(values.changes)
        return values

    monkeypatch.setattr(sys.modules["factedit.methods.memit"], "seek_values", noted)
    monkeypatch.setattr(sys.modules["factedit.methods.memit"], "LEAD_INS", 0)
    result = edited(lm, name)
    bare = lookups(lm, contexts(lm, EDITS, {}, lead_ins=0, seed=0), 0)
    before = read_outputs(bare, lm.blocks[1])
    with applied(lm, result.tensors):
        after = read_outputs(bare, lm.blocks[1])
    assert (before + wanted[0] - after).norm() < 0.1 * wanted[0].norm()


def test_memit_weighs_many_edits_against_more_of_the_background(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, weights = sys.modules["factedit.methods.memit"], []

    def noted(covariance: Tensor, weight: float, *rest: Tensor) -> Tensor:
        weights.append(weight)
        return protected(covariance, weight, *rest)

    monkeypatch.setattr(module, "protected", noted)
    edited(llama, "memit")
    monkeypatch.setattr(module, "WEIGHT_AN_EDIT", 200.0)
    edited(llama, "memit")
    few, many = set(weights[: len(weights) // 2]), set(weights[len(weights) // 2 :])
    assert few == {100.0} and many == {200.0 * len(EDITS)}


@pytest.mark.parametrize("name", ["memit", "alphaedit", "ultraedit"])
def test_what_the_ledgers_edits_yield_is_kept(llama: LanguageModel, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["factedit.methods.memit"], "LEAD_INS", 0)
    module = "memit" if name == "alphaedit" else name
    monkeypatch.setattr(sys.modules[f"factedit.methods.{module}"], "right", lambda a: [True] * len(a))
    old = contexts(llama, EDITS[1:], {}, lead_ins=0, seed=0)
    example = old[0].up_to_lookup() if name != "ultraedit" else first_position(old[0].example)
    asked = Lookups(ExampleSet(llama, [example], [0], 0), [(0, example.positions[0])])
    (matrix,) = llama.block_tensors(0, "mlp_out")

    def moved(ledger: list[Edit]) -> float:
        result = edited(llama, name, "first", edits=EDITS[:1], ledger=ledger)
        change = result.tensors[matrix] - llama.tensors[matrix]
        keys = read_inputs(asked, layer(llama, matrix))
        return float((change @ keys[0]).norm() / change.norm())

    assert moved(EDITS[1:]) < 0.5 * moved([])


def test_a_batch_of_several_groups_is_edited_whole(llama: LanguageModel, monkeypatch: Any) -> None:
    for module in ("memit", "rome"):
        monkeypatch.setattr(sys.modules[f"factedit.methods.{module}"], "GROUP", 1)
    for name in ("memit", "rome"):
        told: list[dict[str, Any]] = []
        result = edited(llama, name, "first", progress=told.append)
        assert answer_loss(llama, result.tensors) < answer_loss(llama, {}) - 0.3
        assert [state["step"] for state in told] == sorted(state["step"] for state in told)


def test_rome_never_seeks_two_values_of_one_subject_at_once() -> None:
    names = ["a", "b", "a", "c", "c"]
    items = [Edit(id=str(i), subject=name, prompt=name, new_object="x") for i, name in enumerate(names)]
    assert list(_different_subjects(items)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_makes_the_same_tensors(lm: LanguageModel, name: str) -> None:
    one, two = edited(lm, name).tensors, edited(lm, name).tensors
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", METHODS)
def test_progress_is_told_in_the_words_of_every_method(llama: LanguageModel, name: str) -> None:
    told: list[dict[str, Any]] = []
    edited(llama, name, progress=told.append)
    assert told
    wanted = {"phase", "step", "max_steps", "loss", "edits_holding", "edits_total"}
    assert all(set(state) == wanted and state["phase"] == "editing" for state in told)
    assert all(0 <= state["step"] <= state["max_steps"] for state in told)


@pytest.mark.parametrize("name", METHODS)
def test_an_edit_on_top_of_another_keeps_the_parents_other_tensors(llama: LanguageModel, name: str) -> None:
    (other,) = llama.block_tensors(LAYERS - 1, "mlp_out")
    parent = {other: llama.tensors[other].data + 0.01}
    before = root_digest(llama)
    result = edited(llama, name, parent=parent, edits=EDITS[:1], ledger=EDITS[1:])
    assert root_digest(llama) == before
    assert torch.equal(result.tensors[other], parent[other])
    assert result.metrics["edits_total"] == 2


@pytest.mark.parametrize("name", METHODS)
def test_a_ledger_that_does_not_hold_is_made_again(llama: LanguageModel, name: str) -> None:
    """A revert rebuilds the line so: nothing new, and a ledger that the parent knows nothing of."""
    rebuilt = edited(llama, name, edits=(), ledger=EDITS).tensors
    new = edited(llama, name).tensors
    assert rebuilt.keys() == new.keys()
    if name != "ultraedit":  # whose statistics have then seen the ledger twice
        assert all(torch.equal(rebuilt[key], new[key]) for key in new)


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_the_last_block_carries_nothing_to_the_answer_and_is_refused(llama: LanguageModel, name: str) -> None:
    with pytest.raises(EditingError, match="below the last"):
        edited(llama, name, "last")


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_without_anything_to_leave_alone_it_is_refused(llama: LanguageModel, name: str) -> None:
    with pytest.raises(EditingError, match="give anchors"):
        edited(llama, name, anchors=[])


def test_ultraedit_needs_nothing_to_leave_alone(llama: LanguageModel) -> None:
    assert edited(llama, "ultraedit", anchors=[]).tensors


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_other_matrices_than_the_mlps_last_are_refused(llama: LanguageModel, name: Any) -> None:
    with pytest.raises(EditingError, match="one MLP-out matrix a block"):
        edited(llama, name, method=MethodSpec(name=name, parameters="attention"))


def test_ultraedit_refuses_what_is_no_plain_matrix(llama: LanguageModel) -> None:
    with pytest.raises(EditingError, match="no plain matrix"):
        edited(llama, "ultraedit", method=MethodSpec(name="ultraedit", parameters="all"))


def test_rome_edits_one_block(llama: LanguageModel) -> None:
    with pytest.raises(EditingError, match="one block"):
        edited(llama, "rome", [0, 1])


@pytest.mark.parametrize("name", METHODS)
def test_a_masked_model_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(EditingError, match="causal"):
        edited(tiny_model(tmp_path, "bert"), name)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_as_it_was_when_an_edit_breaks_off(llama: LanguageModel, name: str) -> None:
    before = root_digest(llama)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edited(llama, name, progress=stop)
    assert root_digest(llama) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.blocks.modules())


def stepping(limit: int) -> Callable[[dict[str, Any]], None]:
    def told(state: dict[str, Any]) -> None:
        assert state["step"] <= limit

    return told


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_no_more_steps_are_taken_than_allowed(llama: LanguageModel, name: Any) -> None:
    result = edited(llama, name, method=MethodSpec(name=name, max_steps=3), progress=stepping(3))
    assert result.metrics["steps"] == 3
