"""How fast edits are made, beside plain fine-tuning: `python -m benchmarks.edit_speed --help`.

In one run on one machine: FT-M as research code does it (benchmarks.naive_ft_m), all edits at once and one
by one; the library's `ft_m` with as many steps; and other methods of its own. The matrix rate that they are
compared with is measured in the same run (benchmarks.limits).
"""

import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from benchmarks.cells import Json, number, percent, table
from benchmarks.data import DATA, Row, read_rows
from benchmarks.engine import BENCH, Choices, Engine
from benchmarks.limits import machine, rates, shapes_in, whole
from benchmarks.measures import answers
from benchmarks.naive_ft_m import edit_naively
from benchmarks.options import BenchOption, DataOption, DeviceOption, ModelOption
from factedit.forward import is_skipped
from factedit.models import LanguageModel
from factedit.task import plan

NAIVE, NAIVE_SINGLY = "naive ft_m", "naive ft_m, one by one"


@dataclass(slots=True)
class Work:
    """What the passes that gradients were taken of had to compute, at least (see `flops_of`).

    Attributes:
        steps: the time (perf_counter) and the FLOPs so far when the first step was told of, and the last.
    """

    passes: int = 0
    flops: float = 0.0
    steps: list[tuple[float, float]] = field(default_factory=list)

    def told(self, progress: Json) -> None:
        """What comes before the first step (reading, trying blocks) and after the last is no stepping."""
        if progress.get("step", 0) > 0:
            self.steps[1:] = [(time.perf_counter(), self.flops)]

    @property
    def stepping(self) -> tuple[float, float]:
        """From the first step's end to the last one's: (seconds, FLOPs)."""
        if len(self.steps) < 2:
            return 0.0, 0.0
        (began, before), (ended, after) = self.steps
        return ended - began, after - before


@dataclass(frozen=True, slots=True)
class Run:
    """One method's run: the seconds and FLOPs of editing; `stepping`: of all its steps but the first."""

    name: str
    dtype: torch.dtype
    steps: int
    seconds: float
    flops: float
    stepping: tuple[float, float]
    found: Json


def flops_of(lm: LanguageModel, names: Sequence[str], tokens: int, rows: int) -> float:
    """What training passes need at least: two FLOPs a weight and token, each time.

    Forward through the matrices of the first chosen block and of all above it; back through those above
    it; the gradient of the chosen ones; and the vocabulary's projection, there and back, at the rows that
    are to be predicted. Attention's own products, norms, the loss and the optimiser are left out.
    """
    sizes, chosen = _matrices(lm), [lm.tensors[name].numel() for name in names]
    first = min(block for name in names if (block := lm.block_of(name)) is not None)
    through = sum(sizes[first:]) + sum(sizes[first + 1 :]) + sum(chosen)
    return 2.0 * tokens * through + 4.0 * rows * _vocabulary(lm)


def _matrices(lm: LanguageModel) -> list[int]:
    """By block, the weights in its matrices."""
    return [sum(p.numel() for p in block.parameters() if p.ndim >= 2) for block in lm.blocks]


def _vocabulary(lm: LanguageModel) -> int:
    head: Any = lm.model.get_output_embeddings()
    size: int = head.weight.numel()
    return size


@contextmanager
def counted(lm: LanguageModel, first_block: int) -> Iterator[Work]:
    """Counts, from `first_block` on, what is computed in passes that gradients are taken of.

    As `flops_of` does, pass by pass, since a method may begin at a lower block first and at a higher one
    then: blocks that are skipped (factedit.forward) and weights that are not trained just now do not count.
    """
    work, sizes, open_pass = Work(), _matrices(lm), [0.0]
    last = [lm.n_blocks]

    def enter(index: int, block: nn.Module, hidden: Tensor) -> None:
        if not torch.is_grad_enabled() or is_skipped(block):
            return
        tokens = hidden.shape[0] * hidden.shape[1]
        trained = sum(p.numel() for p in block.parameters() if p.requires_grad and p.ndim >= 2)
        if index <= last[0]:  # a pass begins: what enters it needs no gradient
            open_pass[0] = 2.0 * tokens * (sizes[index] + trained)
        else:
            open_pass[0] += 2.0 * tokens * (2 * sizes[index] + trained)
        last[0] = index

    def project(_: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and args[0].requires_grad:
            rows = args[0].numel() // args[0].shape[-1]
            work.flops += open_pass[0] + 4.0 * rows * _vocabulary(lm)
            work.passes += 1
        last[0] = lm.n_blocks

    def entering(index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda block, args, named: enter(index, block, args[0] if args else named["hidden_states"])

    head: Any = lm.model.get_output_embeddings()
    handles = [head.register_forward_pre_hook(project)]
    for index in range(first_block, lm.n_blocks):
        handles.append(lm.blocks[index].register_forward_pre_hook(entering(index), with_kwargs=True))
    try:
        yield work
    finally:
        for handle in handles:
            handle.remove()


def run_naively(engine: Engine, rows: Sequence[Row], *, one_by_one: bool) -> Run:
    """FT-M as research code does it, on the very matrix that the library's `ft_m` chooses."""
    lm, choices = engine.lm, Choices.of("ft_m", {})
    chosen = plan(lm, choices.method, choices.blocks, choices.constraint)
    (matrix,) = chosen.names
    model = copy.deepcopy(lm.model).float()
    started = time.perf_counter()
    made = edit_naively(
        model,
        lm.tokenizer,
        [row.edit for row in rows],
        matrix=matrix,
        one_by_one=one_by_one,
        batch_size=chosen.preset.batch_size,
        epochs=chosen.preset.epochs or 1,
        learning_rate=choices.method.learning_rate,
        enough=chosen.preset.enough,
    )
    seconds = time.perf_counter() - started
    del model
    gc.collect()
    overlay = {matrix: made.weight.to(lm.tensors[matrix].dtype)}
    name = NAIVE_SINGLY if one_by_one else NAIVE
    flops = flops_of(lm, [matrix], made.tokens, made.targets)
    found = answers(engine, overlay, rows)
    return Run(name, torch.float32, made.steps, seconds, flops, (seconds, flops), found)


def run_method(engine: Engine, rows: Sequence[Row], method: str, asked: Json) -> Run:
    """One of the library's methods."""
    lm, choices = engine.lm, Choices.of(method, asked)
    chosen = plan(lm, choices.method, choices.blocks, choices.constraint)
    # Neurons that only read change nothing that is computed.
    with counted(lm, min(set(chosen.blocks) - {chosen.reading})) as work:
        made = engine.make(choices, [row.edit for row in rows], progress=work.told)
    found = answers(engine, made.edited.tensors, rows)
    steps = made.edited.metrics.get("steps", 0)
    return Run(method, lm.model.dtype, steps, made.seconds, work.flops, work.stepping, found)


# The report


def report(runs: Sequence[Run], edits: int, limit: Callable[[torch.dtype], float]) -> str:
    """A Markdown table; `limit` is the matrix rate of a dtype, in FLOP/s."""
    base = next(run.seconds for run in runs if run.name == NAIVE)
    header = [
        "method",
        "dtype",
        "steps",
        "seconds",
        "seconds an edit",
        "times as fast as naive ft_m",
        "efficacy (whole answer)",
        "efficacy (its beginning)",
        "TFLOP needed",
        "share of the matrix rate, while stepping",
        "share, of all seconds",
    ]
    lines = [
        [
            run.name,
            str(run.dtype).removeprefix("torch."),
            str(run.steps),
            f"{run.seconds:,.1f}",
            f"{run.seconds / edits:.3f}",
            f"{base / run.seconds:.1f}",
            percent(run.found["efficacy"]),
            percent(run.found["efficacy_begins"]),
            number(run.flops / 1e12),
            *(share_of(limit(run.dtype), *each) for each in (run.stepping, (run.seconds, run.flops))),
        ]
        for run in runs
    ]
    return table(header, lines)


def share_of(rate: float, seconds: float, flops: float, digits: int = 0) -> str:
    """Of a rate in FLOP/s, as a text."""
    return f"{flops / seconds / rate:.{digits}%}" if seconds else "-"


def main(
    count: Annotated[int, typer.Option(min=1, help="CounterFact edits in the batch.")] = 100,
    methods: Annotated[
        str, typer.Option(help="The library's, beside ft_m, by commas.")
    ] = "constrained_ftm,auto,ultraedit",
    singly: Annotated[bool, typer.Option(help="Also the naive one edit by one.")] = True,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    data: DataOption = DATA,
    bench: BenchOption = BENCH,
) -> None:
    """Time the edits and print a table."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    say = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    engine = Engine(model, bench, device)
    rows = read_rows("counterfact", data)[:count]
    shapes = shapes_in(engine.lm.model)
    measured = rates(shapes, engine.lm.device, sorted({torch.float32, engine.lm.model.dtype}, key=str))
    _warm_up(engine, rows)
    runs: list[Run] = []

    def done(run: Run) -> None:
        say.print(f"{run.name}: {run.seconds:.1f} s")
        runs.append(run)

    done(run_naively(engine, rows, one_by_one=False))
    if singly:
        done(run_naively(engine, rows, one_by_one=True))
    done(run_method(engine, rows, "ft_m", {"max_steps": max(1, runs[0].steps)}))
    for method in methods.split(","):
        done(run_method(engine, rows, method, {}))
    console.print(f"{len(rows)} CounterFact edits; {machine(engine.lm.device)}\n")
    console.print(report(runs, len(rows), lambda dtype: whole(measured, dtype)))


def _warm_up(engine: Engine, rows: Sequence[Row]) -> None:
    """One step of each kind of pass, so that no method pays for kernels being built."""
    run_naively(engine, rows[:1], one_by_one=False)
    run_method(engine, rows[:1], "ft_m", {"max_steps": 1})


if __name__ == "__main__":
    typer.run(main)
