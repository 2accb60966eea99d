"""How fast edits are made, beside plain fine-tuning: `python -m benchmarks.edit_speed --help`.

In one run on one machine: FT-M as research code does it (benchmarks.naive_ft_m), all edits at once and one
by one; the library's `ft_m` with as many steps; and `auto` and `ultraedit`. The matrix rate that they are
compared with is measured in the same run (benchmarks.limits).
"""

import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
from factedit.models import LanguageModel
from factedit.task import plan

NAIVE, NAIVE_SINGLY = "naive ft_m", "naive ft_m, one by one"


@dataclass(slots=True)
class Work:
    """What training passes had to compute.

    Attributes:
        tokens: that went through the chosen blocks and those above, padding included.
        rows: positions at which the vocabulary was asked for.
        began, ended: of the first such pass, and of the last step; perf_counter.
    """

    tokens: int = 0
    rows: int = 0
    began: float | None = None
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One method's run. `seconds` of editing; `stepping` of them from the first step to the last."""

    name: str
    dtype: torch.dtype
    steps: int
    seconds: float
    stepping: float
    flops: float
    found: Json


def flops_of(lm: LanguageModel, names: Sequence[str], tokens: int, rows: int) -> float:
    """What training passes need at least: two FLOPs a weight and token, each time.

    Forward through the matrices of the first chosen block and of all above it; back through those above
    it; the gradient of the chosen ones; and the vocabulary's projection, there and back, at the rows that
    are to be predicted. Attention's own products, norms, the loss and the optimiser are left out.
    """
    first = min(block for name in names if (block := lm.block_of(name)) is not None)
    matrices = [
        (block, parameter.numel())
        for name, parameter in lm.tensors.items()
        if (block := lm.block_of(name)) is not None and parameter.ndim >= 2
    ]
    forward = sum(n for block, n in matrices if block >= first)
    back = sum(n for block, n in matrices if block > first)
    chosen = sum(lm.tensors[name].numel() for name in names if lm.tensors[name].ndim >= 2)
    head: Any = lm.model.get_output_embeddings()
    vocabulary: int = head.weight.numel()
    return 2.0 * tokens * (forward + back + chosen) + 4.0 * rows * vocabulary


@contextmanager
def counted(lm: LanguageModel, first_block: int) -> Iterator[Work]:
    """The passes that gradients are taken of, as the first chosen block and the head see them."""
    work = Work()

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            work.tokens += hidden.shape[0] * hidden.shape[1]
            work.began = work.began or time.perf_counter()

    def project(_: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            work.rows += args[0].numel() // args[0].shape[-1]

    head: Any = lm.model.get_output_embeddings()
    handles = [
        lm.blocks[first_block].register_forward_pre_hook(enter, with_kwargs=True),
        head.register_forward_pre_hook(project),
    ]
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
    return Run(name, torch.float32, made.steps, seconds, seconds, flops, answers(engine, overlay, rows))


def run_method(engine: Engine, rows: Sequence[Row], method: str, asked: Json) -> Run:
    """One of the library's methods."""
    lm, choices = engine.lm, Choices.of(method, asked)
    chosen = plan(lm, choices.method, choices.blocks, choices.constraint)
    with counted(lm, min(chosen.blocks)) as work:

        def told(_: Json) -> None:
            work.ended = time.perf_counter()

        made = engine.make(choices, [row.edit for row in rows], progress=told)
    stepping = max(work.ended - work.began, 0.0) if work.began is not None else 0.0
    flops = flops_of(lm, chosen.names, work.tokens, work.rows)
    found = answers(engine, made.edited.tensors, rows)
    steps = made.edited.metrics.get("steps", 0)
    return Run(method, lm.model.dtype, steps, made.seconds, stepping, flops, found)


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
            _share(run.flops, run.stepping, limit(run.dtype)),
            _share(run.flops, run.seconds, limit(run.dtype)),
        ]
        for run in runs
    ]
    return table(header, lines)


def _share(flops: float, seconds: float, rate: float) -> str:
    return f"{flops / seconds / rate:.0%}" if seconds else "-"


def main(
    count: Annotated[int, typer.Option(min=1, help="CounterFact edits in the batch.")] = 100,
    methods: Annotated[str, typer.Option(help="The library's, beside ft_m, by commas.")] = "auto,ultraedit",
    singly: Annotated[bool, typer.Option(help="Also the naive one edit by one.")] = True,
    model: Annotated[
        Path | None, typer.Option(help="A Hugging Face folder; none: the default model.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    data: Annotated[Path, typer.Option(help="The folder of the benchmarks.")] = DATA,
    bench: Annotated[Path, typer.Option(help="Where what was measured of the root is kept.")] = BENCH,
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
