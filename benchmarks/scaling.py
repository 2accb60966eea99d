"""What an edit costs as its batch grows: `python -m benchmarks.scaling --help`.

Each batch in a process of its own, of the three sets' rows in turn: seconds of editing an edit, and how far
the process's memory rose above what it was with the model loaded. `--cache-bytes` is what each set of an
edit's examples may keep in memory of what is computed once (FACTEDIT_EDIT_CACHE_BYTES); the rest goes to a
file.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.cells import table
from benchmarks.data import DATA, DATA_NAMES, read_rows
from benchmarks.engine import BENCH, Choices, Engine
from benchmarks.limits import machine
from benchmarks.options import BenchOption, DataOption, DeviceOption
from factedit.facts import Edit
from factedit.spilling import MAX_BYTES, Room


def edits_of(data: Path) -> Iterator[Edit]:
    """Rows of all sets in turn; nothing is asked twice in the same words."""
    asked: set[str] = set()
    for rows in zip_longest(*(read_rows(name, data) for name in DATA_NAMES)):
        for row in rows:
            if row is not None and row.prompt not in asked:
                asked.add(row.prompt)
                yield row.edit


def measured(
    method: str, count: int, cache_bytes: int, data: Path, bench: Path, device: str
) -> dict[str, Any]:
    """Edit in this process, which has done nothing else yet."""
    engine = Engine(None, bench, device)
    engine.lm.room = Room(cache_bytes, bench)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is (man 5 proc)
    before = _mib("VmRSS")
    made = engine.make(Choices.of(method, {}), list(islice(edits_of(data), count)))
    metrics = made.edited.metrics
    return {
        "seconds": made.seconds,
        "mib": _mib("VmHWM") - before,
        "steps": metrics["steps"],
        "holding": metrics["edits_holding"],
        "count": metrics["edits_total"],
    }


def _mib(what: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{what}:")).split()[1]) / 1024


def main(
    method: Annotated[list[str] | None, typer.Option("--method", help="Each in turn; auto if none.")] = None,
    counts: Annotated[str, typer.Option(help="Edits in a batch, separated by commas.")] = "10,100,1000",
    cache_bytes: Annotated[int, typer.Option(help="For each set of examples, in memory.")] = MAX_BYTES,
    data: DataOption = DATA,
    bench: BenchOption = BENCH,
    device: DeviceOption = "auto",
    here: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Edit batches of growing size, each in a process of its own."""
    methods, sizes = method or ["auto"], [int(text) for text in counts.split(",")]
    if here:
        print(json.dumps(measured(methods[0], sizes[0], cache_bytes, data, bench, device)))
        return
    options = [
        "--cache-bytes",
        str(cache_bytes),
        "--data",
        str(data),
        "--bench",
        str(bench),
        "--device",
        device,
    ]
    rows = [_row(name, count, _apart(name, count, options)) for name in methods for count in sizes]
    out = Console(soft_wrap=True)
    out.print(machine(Engine(None, bench, device).lm.device), highlight=False)
    header = ["method", "edits", "s an edit", "peak above the model, MiB", "MiB an edit", "steps", "holding"]
    out.print(table(header, rows), highlight=False)


def _apart(method: str, count: int, options: Iterable[str]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        "--here",
        "--method",
        method,
        "--counts",
        str(count),
    ]
    done = subprocess.run([*command, *options], env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(method: str, count: int, found: dict[str, Any]) -> list[str]:
    return [
        method,
        str(count),
        f"{found['seconds'] / count:.3f}",
        f"{found['mib']:.0f}",
        f"{found['mib'] / count:.2f}",
        str(found["steps"]),
        f"{found['holding']} of {found['count']}",
    ]


if __name__ == "__main__":
    typer.run(main)
