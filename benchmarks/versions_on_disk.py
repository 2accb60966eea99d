"""What a version takes on disk, and what it costs to load: `python -m benchmarks.versions_on_disk --help`.

Versions of a few CounterFact edits, by a method that moves one matrix and by the default one, beside the
bytes of the tensors that changed and beside a full checkpoint; written as they are and packed against the
root (factedit.packing); and what two versions in a row have in common.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from torch import Tensor

from benchmarks.cells import table
from benchmarks.data import DATA, Row, read_rows
from benchmarks.engine import BENCH, Choices, Engine, default_model
from benchmarks.limits import machine
from benchmarks.options import BenchOption, DataOption, DeviceOption, ModelOption
from factedit.checkpoint_store import CheckpointStore
from factedit.overlay import Overlay, tensor_digest

T = TypeVar("T")

LOADS = 9
"""How often each version is loaded; the fastest counts: what else the machine does is no cost of ours."""


@dataclass(frozen=True, slots=True)
class Size:
    """A version's bytes and seconds; `tensors`: of what changed, in memory; `full`: of the root's files."""

    name: str
    count: int
    tensors: int
    full: int
    plain: int
    packed: int
    load_plain: float
    load_packed: float
    publish_packed: float

    @property
    def overhead(self) -> float:
        """What is on disk beyond the tensors' own bytes, as a share of these, when nothing is packed."""
        return self.plain / self.tensors - 1


def measured(name: str, overlay: Overlay, model: Path, folder: Path) -> Size:
    """A version in two empty stores: as it is, and packed against its root.

    Raises:
        RuntimeError: the two do not have one digest, or do not load alike.
    """
    plain, packed = CheckpointStore(folder / f"{name}-plain"), CheckpointStore(folder / "packed")
    root = packed.publish_root(model)
    written = plain.publish_overlay(overlay)
    publishing, near = _timed(lambda: packed.publish_overlay(overlay, root), 1)
    load_plain, _ = _timed(lambda: plain.load_overlay(written.digest))
    load_packed, loaded = _timed(lambda: packed.load_overlay(near.digest))
    if near.digest != written.digest or _distinct([loaded]) != _distinct([overlay]):
        raise RuntimeError(f"{name}: what was packed is not what was published")
    return Size(
        name=name,
        count=len(overlay),
        tensors=sum(tensor.nbytes for tensor in overlay.values()),
        full=sum(file.stat().st_size for file in model.glob("*.safetensors")),
        plain=written.bytes,
        packed=near.bytes,
        load_plain=load_plain,
        load_packed=load_packed,
        publish_packed=publishing,
    )


def in_common(versions: Sequence[Overlay], folder: Path) -> tuple[int, int, int]:
    """(bytes of all versions on disk, of these where a version is published twice, of distinct tensors)."""
    store = CheckpointStore(folder / "row")
    sizes = []
    for _ in range(2):
        for overlay in versions:
            store.publish_overlay(overlay)
        sizes.append(sum(file.stat().st_size for file in (store.path / "overlays").iterdir()))
    return sizes[0], sizes[1], sum(_distinct(versions).values())


def _distinct(versions: Sequence[Overlay]) -> dict[tuple[str, str], int]:
    """The bytes of each tensor, by name and digest."""
    return {(name, tensor_digest(t)): t.nbytes for overlay in versions for name, t in overlay.items()}


def _timed(run: Callable[[], T], times: int = LOADS) -> tuple[float, T]:
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        found = run()
        best = min(best, time.perf_counter() - started)
    return best, found


# The report


def report(sizes: Sequence[Size]) -> str:
    """A Markdown table."""
    header = [
        "version",
        "tensors",
        "bytes of its tensors",
        "on disk, as they are",
        "a full checkpoint is so many times as large",
        "on disk, packed",
        "saved",
        "load, ms",
        "load packed, ms",
        "publish packed, ms",
    ]
    rows = [
        [
            size.name,
            str(size.count),
            f"{size.tensors:,}",
            f"{size.plain:,} (+{size.overhead:.4%})",
            f"{size.full / size.plain:.0f}",
            f"{size.packed:,}",
            f"{1 - size.packed / size.plain:.1%}",
            f"{size.load_plain * 1e3:.1f}",
            f"{size.load_packed * 1e3:.1f}",
            f"{size.publish_packed * 1e3:.0f}",
        ]
        for size in sizes
    ]
    return table(header, rows)


def main(
    count: Annotated[int, typer.Option(min=1, help="CounterFact edits in a version.")] = 3,
    methods: Annotated[str, typer.Option(help="By commas.")] = "ft_m,auto",
    model: ModelOption = None,
    device: DeviceOption = "auto",
    data: DataOption = DATA,
    bench: BenchOption = BENCH,
) -> None:
    """Make versions, write and load them, and print a table."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    folder = model or default_model(bench)
    engine = Engine(folder, bench, device)
    rows = read_rows("counterfact", data)[: 2 * count]
    made = {name: _edited(engine, name, rows[:count], {}) for name in methods.split(",")}
    first, base = next(iter(made.items()))
    child = _edited(engine, first, rows[count:], base, rows[:count])
    with tempfile.TemporaryDirectory(dir=bench) as scratch:
        sizes = [measured(name, overlay, folder, Path(scratch)) for name, overlay in made.items()]
        once, twice, distinct = in_common([*made.values(), child], Path(scratch))
    console.print(f"{count} CounterFact edits a version; {machine(engine.lm.device)}\n")
    console.print(report(sizes))
    console.print(
        f"These and one made on the first: {once:,} bytes on disk, {twice:,} when each is published again; "
        f"{distinct:,} bytes of distinct tensors."
    )


def _edited(
    engine: Engine, method: str, rows: Sequence[Row], parent: Mapping[str, Tensor], before: Sequence[Row] = ()
) -> Overlay:
    ledger = [row.edit for row in before]
    choices = Choices.of(method, {})
    return engine.make(choices, [row.edit for row in rows], parent=parent, ledger=ledger).edited.tensors


if __name__ == "__main__":
    typer.run(main)
