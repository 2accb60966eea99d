"""What our speed is compared with is the same fine-tuning, honestly counted."""

from pathlib import Path

import pytest
import torch

from benchmarks.data import Row
from benchmarks.edit_speed import NAIVE, Run, counted, flops_of, report, run_method, run_naively
from benchmarks.engine import Choices, Engine
from benchmarks.limits import Rate, Shape, bandwidth, durable_writes, rates, shapes_in, whole
from benchmarks.naive_ft_m import edit_naively
from factedit.forward import block_input, target_logits
from factedit.overlay import root_digest
from factedit.prompts import answer_example, collate
from factedit.scoring import score_edits
from factedit.task import plan
from factedit.toy import toy_facts, write_toy_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("speed")
    write_toy_model(folder / "model", steps=60)
    return Engine(folder / "model", folder / "bench", "cpu")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    facts = toy_facts()[:5]
    return [row(place, fact.subject, facts[place - 1].object) for place, fact in enumerate(facts)]


def row(place: int, subject: str, wanted: str) -> Row:
    return Row(f"r{place}", subject, f"{subject} has its capital in", wanted, f"{subject} is", "", False)


def matrix_of(engine: Engine) -> str:
    choices = Choices.of("ft_m", {})
    (name,) = plan(engine.lm, choices.method, choices.blocks, choices.constraint).names
    return name


# The naive baseline


def test_the_naive_way_computes_what_the_librarys_ft_m_does(engine: Engine, rows: list[Row]) -> None:
    name = matrix_of(engine)
    edits = [row.edit for row in rows]
    naive = edit_naively(engine.lm.model, engine.lm.tokenizer, edits, matrix=name, epochs=4, enough=0.0)
    ours = engine.make(Choices.of("ft_m", {"epochs": 4}), edits).edited
    assert naive.steps == ours.metrics["steps"] == 4
    root = engine.lm.tensors[name].data
    moved, ours_moved = (naive.weight - root).flatten(), (ours.tensors[name] - root).flatten()
    assert moved.abs().max() > 1e-3
    # Adam makes whole steps of gradients that are nothing but rounding: not each weight is the same.
    assert torch.nn.functional.cosine_similarity(moved, ours_moved, dim=0) > 0.999


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_naive_run_leaves_the_model_as_it_was(engine: Engine, rows: list[Row], one_by_one: bool) -> None:
    before = root_digest(engine.lm)
    trainable = [p.requires_grad for p in engine.lm.model.parameters()]
    run = run_naively(engine, rows[:2], one_by_one=one_by_one)
    assert run.steps == (50 if one_by_one else 25)
    assert root_digest(engine.lm) == before
    assert [p.requires_grad for p in engine.lm.model.parameters()] == trainable


def test_naive_edits_hold_and_end_when_they_do(engine: Engine, rows: list[Row]) -> None:
    name, edits = matrix_of(engine), [row.edit for row in rows]
    made = edit_naively(
        engine.lm.model, engine.lm.tokenizer, edits, matrix=name, learning_rate=1e-2, epochs=99, enough=0.5
    )
    assert 0 < made.steps < 99
    assert all(one.teacher_forced for one in score_edits(engine.lm, {name: made.weight}, edits, {}))


def test_one_by_one_each_edit_has_its_own_steps(engine: Engine, rows: list[Row]) -> None:
    edits = [row.edit for row in rows]
    asked = {"matrix": matrix_of(engine), "epochs": 2, "enough": 0.0}
    singly = edit_naively(engine.lm.model, engine.lm.tokenizer, edits, one_by_one=True, **asked)  # type: ignore[arg-type]
    batched = edit_naively(engine.lm.model, engine.lm.tokenizer, edits, batch_size=2, **asked)  # type: ignore[arg-type]
    assert (singly.steps, batched.steps) == (10, 6)
    assert singly.targets == batched.targets
    nothing = edit_naively(engine.lm.model, engine.lm.tokenizer, edits, matrix=matrix_of(engine), enough=1e9)
    assert nothing.steps == 0
    assert torch.equal(nothing.weight, engine.lm.tensors[matrix_of(engine)].data)


# What is counted


def test_only_passes_that_gradients_are_taken_of_are_counted(engine: Engine, rows: list[Row]) -> None:
    lm, name = engine.lm, matrix_of(engine)
    examples = [answer_example(lm, row.prompt, row.new_object) for row in rows]
    batch = collate(lm, examples, range(len(examples)))
    tokens, targets = batch.input_ids.numel(), len(batch.targets)
    with counted(lm, 2) as work:
        with torch.no_grad():
            target_logits(lm, batch)
        target_logits(lm, batch)  # of no gradient either: nothing is trained
        assert work.passes == work.flops == 0
        lm.tensors[name].requires_grad_(True)
        target_logits(lm, batch)
        target_logits(lm, batch, prefix=block_input(lm, batch, 2), first_block=2)
        assert work.passes == 2
        assert work.flops == 2 * flops_of(lm, [name], tokens, targets)
        target_logits(lm, batch, prefix=block_input(lm, batch, 3), first_block=3)
        assert work.passes == 2  # the trained matrix was skipped
        lm.tensors[name].requires_grad_(False)
    target_logits(lm, batch)
    assert work.passes == 2


def test_flops_are_those_of_the_chosen_block_and_of_all_above_it(engine: Engine) -> None:
    lm = engine.lm
    block = sum(p.numel() for n, p in lm.tensors.items() if lm.block_of(n) == 3 and p.ndim == 2)
    (out,) = lm.block_tensors(2, "mlp_out")
    vocabulary = lm.model.config.vocab_size * 64
    assert flops_of(lm, [out], 10, 0) == 2 * 10 * (2 * block + block + lm.tensors[out].numel())
    assert flops_of(lm, [out], 0, 3) == 4 * 3 * vocabulary


def test_the_report_compares_with_the_naive_way(engine: Engine, rows: list[Row]) -> None:
    run = run_method(engine, rows, "ft_m", {"max_steps": 2})
    seconds, flops = run.stepping
    assert run.steps == 2 and 0 < seconds <= run.seconds and 0 < flops < run.flops
    base = Run(NAIVE, torch.float32, 2, 4 * run.seconds, 1e9, (1.0, 1e9), run.found)
    lines = report([base, run], len(rows), lambda _: 1e12).splitlines()
    assert "| 4.0 |" in lines[3] and "| 1.0 |" in lines[2]


# The machine's limits


def test_the_shapes_are_the_models_own(engine: Engine) -> None:
    shapes = {(s.inner, s.columns): s.count for s in shapes_in(engine.lm.model, 8)}
    assert shapes[64, 128] == 8 and shapes[128, 64] == 4
    assert shapes[64, engine.lm.model.config.vocab_size] == 1
    assert sum(shapes.values()) == 4 * 7 + 1


def test_limits_are_rates_of_this_machine(tmp_path: Path) -> None:
    measured = rates([Shape(8, 16, 16, 1)], CPU, [torch.float32], seconds=0.01)
    assert measured[0].flops_per_second > 0
    assert bandwidth(CPU, 1 << 12, 0.01) > 0
    writes = durable_writes(tmp_path / "new", count=5)
    assert len(writes) == 5 and writes == sorted(writes) and writes[0] > 0
    assert list((tmp_path / "new").iterdir()) == []


def test_the_whole_models_rate_gives_each_shape_its_time() -> None:
    few, many = Shape(1, 1, 1, 1), Shape(1, 1, 1, 3)
    measured = [
        Rate(few, torch.float32, 1.0),
        Rate(many, torch.float32, 3.0),
        Rate(many, torch.bfloat16, 9.0),
    ]
    assert whole(measured, torch.float32) == pytest.approx(8 / (2 + 2))
