"""This machine's limits, matrix products, memory traffic, durable writes: `python -m benchmarks.limits`.

Every figure is the best of several runs on the machine as it is: other work on it lowers them, so a share
of a limit is only told of a limit that was measured in the same run.
"""

import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.utils.benchmark import Timer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from benchmarks.cells import table
from benchmarks.engine import BENCH, default_model
from factedit.models import pick_device

ROWS = 512
"""Tokens that a matrix product takes at once, unless told otherwise."""
DTYPES = (torch.float32, torch.bfloat16)
SECONDS = 0.3
"""How long each product is repeated at least."""
TRIAD = 1 << 25
"""Numbers in each of the three arrays: far more than any cache holds."""
WRITES = 100


@dataclass(frozen=True, slots=True)
class Shape:
    """A product [rows, inner] x [inner, columns], and how many matrices of the model have that shape."""

    rows: int
    inner: int
    columns: int
    count: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns

    def __str__(self) -> str:
        return f"{self.rows} x {self.inner} x {self.columns}"


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast one shape's product was: the fastest of its runs, in FLOP/s."""

    shape: Shape
    dtype: torch.dtype
    flops_per_second: float


def shapes_of(model: Path, rows: int = ROWS) -> list[Shape]:
    """The products of one pass over `rows` tokens, read off the architecture; its weights are not loaded."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    masked = "MaskedLM" in " ".join(config.architectures or ())
    auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    with torch.device("meta"):
        return shapes_in(auto.from_config(config), rows)


def shapes_in(model: torch.nn.Module, rows: int = ROWS) -> list[Shape]:
    """The products of one pass over `rows` tokens: those of torch's linear layers, which GPT-2's are not."""
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    found = Counter((module.in_features, module.out_features) for module in linear)
    return [Shape(rows, inner, columns, count) for (inner, columns), count in sorted(found.items())]


def rates(
    shapes: Iterable[Shape],
    device: torch.device,
    dtypes: Sequence[torch.dtype] = DTYPES,
    seconds: float = SECONDS,
) -> list[Rate]:
    """The rate of each shape's product in each dtype, into memory that is there already."""
    return [Rate(shape, dtype, _rate(shape, device, dtype, seconds)) for shape in shapes for dtype in dtypes]


def whole(measured: Sequence[Rate], dtype: torch.dtype) -> float:
    """The rate at which all the model's products together would run in `dtype`, each at its own limit."""
    mine = [rate for rate in measured if rate.dtype == dtype]
    flops = sum(rate.shape.count * rate.shape.flops for rate in mine)
    return flops / sum(rate.shape.count * rate.shape.flops / rate.flops_per_second for rate in mine)


def bandwidth(device: torch.device, numbers: int = TRIAD, seconds: float = SECONDS) -> float:
    """STREAM's triad, a = b + s c in float32: bytes read and written per second, three arrays a run."""
    b, c = (torch.rand(numbers, device=device) for _ in range(2))
    a = torch.empty_like(b)
    found = _fastest("torch.add(b, c, alpha=s, out=a)", {"a": a, "b": b, "c": c, "s": 3.0}, seconds)
    return 3 * b.nbytes / found


def durable_writes(folder: Path, count: int = WRITES, size: int = 4096) -> list[float]:
    """Seconds of each of `count` small writes that a power cut would not undo, the shortest first."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, found = os.urandom(size), []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(count):
            started = time.perf_counter()
            file.write(raw)
            os.fsync(file.fileno())
            found.append(time.perf_counter() - started)
    return sorted(found)


def _rate(shape: Shape, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    x = torch.randn(shape.rows, shape.inner, device=device, dtype=dtype)
    # Laid out as a linear layer keeps it.
    weight = torch.randn(shape.columns, shape.inner, device=device, dtype=dtype).T
    out = torch.empty(shape.rows, shape.columns, device=device, dtype=dtype)
    with torch.inference_mode():
        found = _fastest("torch.mm(x, w, out=y)", {"x": x, "w": weight, "y": out}, seconds)
    return shape.flops / found


def _fastest(statement: str, names: dict[str, Any], seconds: float) -> float:
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    timer.timeit(2)
    # In short blocks, of which the best is one that nothing else on the machine disturbed.
    each = max(1, int(seconds / 20 / timer.timeit(1).mean))
    deadline, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < deadline:
        best = min(best, timer.timeit(each).mean)
    return best


# The report


def machine(device: torch.device) -> str:
    """What was measured, in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _giga(value: float) -> str:
    return f"{value / 1e9:,.0f}"


def report(
    shapes: Sequence[Shape], measured: Sequence[Rate], bytes_per_second: float, writes: list[float]
) -> str:
    """Two tables in Markdown."""
    dtypes = list(dict.fromkeys(rate.dtype for rate in measured))
    at = {(rate.shape, rate.dtype): rate.flops_per_second for rate in measured}
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    rows = [
        [str(shape), f"{shape.count}", *(_giga(at[shape, dtype]) for dtype in dtypes)] for shape in shapes
    ]
    rows.append(["all of the model's", "", *(_giga(whole(measured, dtype)) for dtype in dtypes)])
    products = table(["matrix product", "matrices", *(f"{name}, GFLOP/s" for name in names)], rows)
    middle, late = writes[len(writes) // 2], writes[int(len(writes) * 0.95)]
    others = table(
        ["limit", "measured"],
        [
            ["memory traffic (triad, float32)", f"{bytes_per_second / 1e9:,.1f} GB/s"],
            ["4 KiB written and fsynced, median", f"{middle * 1e3:.2f} ms"],
            ["4 KiB written and fsynced, 95th percentile", f"{late * 1e3:.2f} ms"],
        ],
    )
    return f"{products}\n{others}"


def main(
    model: Annotated[
        Path | None, typer.Option(help="A Hugging Face folder; none: the default model.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Tokens in a matrix product.")] = ROWS,
    data: Annotated[Path, typer.Option(help="The data folder, whose disk is measured.")] = Path(".factedit"),
) -> None:
    """Measure this machine's limits at a model's shapes and print them as Markdown."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    target = pick_device(device)
    shapes = shapes_of(model or default_model(BENCH), rows)
    console.print(f"{machine(target)}\n")
    console.print(report(shapes, rates(shapes, target), bandwidth(target), durable_writes(data)))


if __name__ == "__main__":
    typer.run(main)
