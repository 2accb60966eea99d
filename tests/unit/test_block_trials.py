"""Blocks and radius chosen by trial: what is tried, what is chosen, and that nothing is left behind."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from factedit import block_trials
from factedit.block_trials import Trial, _rank, _searched, anchors_wanted, try_blocks, windows
from factedit.editing import edit
from factedit.facts import Edit
from factedit.forward import target_logits
from factedit.holding import mean_loss
from factedit.models import LanguageModel, iter_block_tensors, load_model
from factedit.overlay import applied, root_digest
from factedit.presets import PRESETS
from factedit.prompts import answer_example, collate
from factedit.relations import builtin_catalogue
from factedit.running_text import RunningText
from factedit.scoring import score_edits
from factedit.specs import AnchorSpec, Blocks, ConstraintSpec, MethodName, MethodSpec, Norm
from factedit.task import Edited, EditTask, plan
from factedit.toy import toy_facts, write_toy_model
from tests.support.tiny_models import tiny_model

RELATIONS = builtin_catalogue().relations
FACTS = toy_facts()
EDITS = [
    Edit(fact.subject, fact.subject, other.object, relation="capital") for fact, other in pairwise(FACTS[:7])
]
ANCHORS = [RELATIONS["capital"].training_prompts(fact.subject)[0] for fact in FACTS[10:40]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_model(folder)
    return load_model(folder, device="cpu")


def task_of(lm: LanguageModel, **more: Any) -> EditTask:
    method = MethodSpec(name="constrained_ftm")
    task = EditTask(
        lm=lm,
        plan=plan(lm, method, "auto", ConstraintSpec()),
        parent={},
        edits=EDITS,
        ledger=[],
        relations=RELATIONS,
        anchors=ANCHORS,
        method=method,
        seed=0,
        progress=lambda _: None,
        background=lambda _: pytest.fail("nothing to measure"),
        texts=RunningText.of(lm, []),
    )
    return replace(task, **more)


def edited(lm: LanguageModel, name: MethodName, blocks: Blocks = "auto", **more: Any) -> Edited:
    given: dict[str, Any] = {
        "parent": {},
        "edits": EDITS,
        "ledger": [],
        "relations": RELATIONS,
        "anchors": ANCHORS,
        "constraint": ConstraintSpec(),
        "seed": 0,
        "progress": lambda _: None,
        **more,
    }
    given.setdefault("method", MethodSpec(name=name))
    return edit(lm, blocks=blocks, **given)


@pytest.mark.parametrize(
    ("n_blocks", "usual", "firsts"),
    [
        (30, range(19, 25), [19, 1, 7, 13, 24]),
        (12, range(8, 11), [8, 0, 2, 5]),
        (4, [2], [2, 0, 1, 3]),
        (1, [0], [0]),
        (3, range(3), [0]),
    ],
)
def test_windows_go_through_the_whole_model_from_the_usual_one_on(
    n_blocks: int, usual: list[int], firsts: list[int]
) -> None:
    found = windows(n_blocks, list(usual))
    assert [window[0] for window in found] == firsts
    assert all(len(window) == len(usual) for window in found)
    assert all(0 <= block < n_blocks for window in found for block in window)


def test_a_trial_leaves_the_model_as_it_was(toy: LanguageModel) -> None:
    before = root_digest(toy)
    try_blocks(task_of(toy))
    assert root_digest(toy) == before
    assert not any(t.requires_grad or t.grad is not None for t in toy.tensors.values())


def test_a_trial_that_breaks_off_leaves_the_model_as_it_was(
    toy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def breaking(*_: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:  # the first one's gradient is taken, the next would measure a step
            raise RuntimeError("no more memory")
        return real(*_)

    real, before = mean_loss, root_digest(toy)
    monkeypatch.setattr(block_trials, "mean_loss", breaking)
    with pytest.raises(RuntimeError, match="memory"):
        try_blocks(task_of(toy))
    assert root_digest(toy) == before
    assert not any(t.requires_grad or t.grad is not None for t in toy.tensors.values())


def test_a_step_goes_against_the_gradients_signs(toy: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: one edit, one block, the loss after a step of just this size."""
    tried: list[Trial] = []
    step = block_trials._Window.tried

    def watched(self: block_trials._Window, size: float) -> Trial:
        tried.append(step(self, size))
        return tried[-1]

    prompt = RELATIONS["capital"].training_prompts(EDITS[0].subject)[0]
    example = answer_example(toy, prompt, EDITS[0].new_object)
    monkeypatch.setattr(block_trials._Window, "tried", watched)
    monkeypatch.setattr(block_trials, "_asked", lambda task: ([example], [example]))
    try_blocks(task_of(toy))
    last = next(trial for trial in reversed(tried) if trial.blocks == [0])
    names = list(iter_block_tensors(toy, [0], "mlp"))
    batch = collate(toy, [example], [0])
    weights = {name: toy.tensors[name].data.clone().requires_grad_(True) for name in names}
    with torch.enable_grad():
        output = torch.func.functional_call(toy.model, weights, kwargs={"input_ids": batch.input_ids})
        logits = output.logits[batch.rows, batch.cols]
        gradients = torch.autograd.grad(
            torch.nn.functional.cross_entropy(logits, batch.targets), [weights[name] for name in names]
        )
    moved = {
        name: weights[name].detach() - last.step * gradient.sign()
        for name, gradient in zip(names, gradients, strict=True)
    }
    with applied(toy, moved), torch.no_grad():
        loss = torch.nn.functional.cross_entropy(target_logits(toy, batch), batch.targets)
    assert last.loss == pytest.approx(float(loss), rel=1e-3)


def on_a_curve(loss: Callable[[float], float], harm: Callable[[float], float]) -> Callable[[float], Trial]:
    return lambda step: Trial([0], step, loss(step), harm(step))


@pytest.mark.parametrize("first", [2e-4, 1e-3, 0.02, 0.3])
def test_the_step_is_as_long_as_the_loss_wants(first: float) -> None:
    """Loss falls with the logarithm of the step, harm grows with its square: both are found between steps."""
    curve = on_a_curve(lambda step: -math.log10(step), lambda step: step**2)
    found = _searched(curve, first, 1.0, 2.0, [])
    assert found.loss == 2.0
    assert found.step == pytest.approx(0.01, rel=1e-6)
    assert found.harm == pytest.approx(found.step**2, rel=1e-6)


def test_a_step_is_never_longer_than_training_could_get() -> None:
    curve = on_a_curve(lambda step: 3 - step, lambda step: step)
    found = _searched(curve, 0.5, 0.75, 1.0, [])
    assert (found.step, found.loss) == (0.75, 2.25)


def test_a_window_is_given_up_where_it_does_more_harm_than_the_best() -> None:
    tried: list[float] = []

    def curve(step: float) -> Trial:
        tried.append(step)
        return Trial([1], step, 3 - step, 100 * step)

    best = Trial([0], 0.5, 1.0, harm=0.01)
    found = _searched(curve, 0.5, 64.0, 1.0, [best])
    assert tried == [0.5]
    assert _rank(best, 1.0) < _rank(found, 1.0)


def test_who_gets_there_comes_first_and_then_the_least_harm() -> None:
    harsh, gentle = Trial([0], 0.1, 2.0, 0.5), Trial([1], 0.1, 2.0, 0.1)
    short, shorter = Trial([2], 0.1, 2.5, 0.01), Trial([3], 0.1, 3.0, 0.001)
    trials = [shorter, short, harsh, gentle]
    assert sorted(trials, key=lambda trial: _rank(trial, 2.0)) == [gentle, harsh, short, shorter]


def test_a_step_that_overflows_is_no_success() -> None:
    curve = on_a_curve(lambda step: 3.0 if step < 0.5 else math.inf, lambda step: step)
    found = _searched(curve, 0.25, 64.0, 1.0, [])
    assert (found.step, found.loss) == (0.25, 3.0)
    found = _searched(curve, 2.0, 64.0, 1.0, [])
    assert (found.step, found.loss) == (0.25, 3.0)
    assert _rank(Trial([0], 0.1, 1.0, 0.5), 1.0) < _rank(Trial([1], 0.1, math.inf, math.inf), 1.0)


def test_what_is_no_number_counts_as_infinite(toy: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = block_trials._Window._moved

    @contextmanager
    def broken(self: block_trials._Window, size: float) -> Iterator[None]:
        with real(self, math.nan if size else 0.0):
            yield

    monkeypatch.setattr(block_trials._Window, "_moved", broken)
    choice = try_blocks(task_of(toy))
    assert all(trial.loss == trial.harm == math.inf for trial in choice.trials)
    assert math.isfinite(choice.radius(alone=False))


def test_the_choice_is_the_best_trial(toy: LanguageModel) -> None:
    choice = try_blocks(task_of(toy))
    assert sorted(trial.blocks for trial in choice.trials) == [[0], [1], [2], [3]]
    assert choice.blocks == choice.trials[0].blocks
    assert choice.radius(alone=False) == pytest.approx(block_trials.ROOM * choice.trials[0].step)


def test_no_step_is_longer_than_the_caller_allows(toy: LanguageModel) -> None:
    assert all(trial.step <= 0.002 for trial in try_blocks(task_of(toy), 0.002).trials)


def test_edits_hold_where_the_usual_radius_is_too_small(toy: LanguageModel) -> None:
    """The usual one was measured on another model; weights of this one must move ten times as far."""
    there = edited(toy, "constrained_ftm")
    usual = edited(
        toy,
        "constrained_ftm",
        plan(toy, MethodSpec(name="constrained_ftm"), "auto", ConstraintSpec()).blocks,
    )
    assert usual.chosen["radius"] == PRESETS["constrained_ftm"].radius["l_inf"]
    right = [
        sum(outcome.right for outcome in score_edits(toy, each.tensors, EDITS, RELATIONS))
        for each in (usual, there)
    ]
    assert right[0] < len(EDITS) / 2
    assert right[1] == len(EDITS)
    assert there.metrics["max_abs_change"] <= there.chosen["radius"] * 1.001


def test_what_was_tried_is_told(toy: LanguageModel) -> None:
    told: list[dict[str, Any]] = []
    made = edited(toy, "constrained_ftm", progress=told.append)
    tried = made.chosen["tried"]
    assert tried[0]["blocks"] == made.chosen["blocks"]
    assert len(tried) == toy.n_blocks
    assert all(each["anchors_kl"] >= 0 for each in tried)
    assert [s["windows_tried"] for s in told if "windows_tried" in s] == list(range(toy.n_blocks + 1))


@pytest.mark.parametrize("name", ["ft_m", "loc_ft", "memit", "crisp", "auto"])
def test_other_methods_keep_the_blocks_they_are_known_with(toy: LanguageModel, name: MethodName) -> None:
    assert "tried" not in edited(toy, name, method=MethodSpec(name=name, max_steps=2)).chosen


def test_auto_in_a_ball_is_tried_too(toy: LanguageModel) -> None:
    few = MethodSpec(name="auto", max_steps=2)
    made = edited(toy, "auto", constraint=ConstraintSpec(radius=0.05), method=few)
    assert made.chosen["radius"] == 0.05
    assert made.chosen["tried"][0]["blocks"] == made.chosen["blocks"]


def test_the_ball_is_narrower_where_nothing_else_holds_unmodified_facts(toy: LanguageModel) -> None:
    off = MethodSpec(name="constrained_ftm", max_steps=1, anchors=AnchorSpec(count=0, weight=0.0))
    alone, beside = (
        edited(toy, "constrained_ftm", method=method).chosen["radius"]
        for method in (off, MethodSpec(name="constrained_ftm", max_steps=1))
    )
    assert alone == pytest.approx(beside * block_trials.ROOM_ALONE / block_trials.ROOM)


def test_blocks_that_the_caller_names_are_not_questioned(toy: LanguageModel) -> None:
    made = edited(toy, "constrained_ftm", [1], method=MethodSpec(name="constrained_ftm", max_steps=2))
    assert made.chosen["blocks"] == [1]
    assert "tried" not in made.chosen


def test_a_radius_that_the_caller_names_is_kept(toy: LanguageModel) -> None:
    few = MethodSpec(name="constrained_ftm", max_steps=2)
    made = edited(toy, "constrained_ftm", constraint=ConstraintSpec(radius=0.004), method=few)
    assert made.chosen["radius"] == 0.004
    assert "tried" in made.chosen


def test_the_ball_of_a_line_of_versions_holds_them_all(
    toy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_trials, "windows", lambda *_: [[1]])
    first = edited(toy, "constrained_ftm", [1], edits=EDITS[:3], constraint=ConstraintSpec(radius=0.3))
    assert first.metrics["max_abs_change"] > 0.01
    tight = MethodSpec(name="constrained_ftm", max_steps=2, learning_rate=1e-4)
    then = edited(
        toy, "constrained_ftm", method=tight, parent=first.tensors, edits=EDITS[3:], ledger=EDITS[:3]
    )
    assert then.chosen["blocks"] == [1] and len(then.chosen["tried"]) == 1
    assert then.chosen["radius"] >= first.metrics["max_abs_change"]
    held = score_edits(toy, then.tensors, EDITS[:3], RELATIONS)
    assert all(outcome.right for outcome in held)


@pytest.mark.parametrize(("norm", "windows_tried"), [("l_2", 1), ("l_inf", 4)])
def test_where_a_ball_bounds_all_weights_together_a_line_of_versions_stays_in_its_blocks(
    toy: LanguageModel, norm: Norm, windows_tried: int
) -> None:
    few = MethodSpec(name="constrained_ftm", max_steps=2)
    first = edited(toy, "constrained_ftm", [1], edits=EDITS[:3], method=few)
    ball = ConstraintSpec(norm=norm, radius=0.5)
    then = edited(toy, "constrained_ftm", method=few, parent=first.tensors, edits=EDITS[3:], constraint=ball)
    assert len(then.chosen["tried"]) == windows_tried
    assert norm == "l_inf" or then.chosen["blocks"] == [1]


def test_unmodified_prompts_are_drawn_for_a_trial_though_none_are_held(toy: LanguageModel) -> None:
    off = MethodSpec(name="constrained_ftm", anchors=AnchorSpec(count=0, weight=0.0))
    chosen = plan(toy, off, "auto", ConstraintSpec())
    assert anchors_wanted(chosen, "auto") == block_trials.ANCHORS
    assert anchors_wanted(chosen, [1]) == 0
    assert anchors_wanted(plan(toy, MethodSpec(name="memit"), "auto", ConstraintSpec()), "auto") == 0


def test_windows_without_such_matrices_are_left_out(
    toy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = iter_block_tensors
    monkeypatch.setattr(
        block_trials,
        "iter_block_tensors",
        lambda lm, blocks, kind: [] if 0 in blocks else real(lm, blocks, kind),
    )
    assert [0] not in [trial.blocks for trial in try_blocks(task_of(toy)).trials]


def test_without_unmodified_prompts_nothing_tells_harm(toy: LanguageModel) -> None:
    assert "tried" not in edited(toy, "ftm", anchors=[]).chosen


def test_a_masked_model_is_tried_as_well(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "bert")
    before = root_digest(lm)
    mask = lm.tokenizer.mask_token
    facts = [Edit("1", "France", "Rome", prompt=f"The capital of France is {mask} .")]
    anchors = [f"The capital of {country} is {mask} ." for country in ("Spain", "Norway")]
    made = edited(lm, "ftm", edits=facts, anchors=anchors)
    assert {tuple(each["blocks"]) for each in made.chosen["tried"]} == {(0, 1), (1, 2)}
    assert root_digest(lm) == before
