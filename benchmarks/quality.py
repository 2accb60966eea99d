"""How well each method edits, beside what it leaves alone: `python -m benchmarks.quality --help`.

Runs the library itself, with no service, on the rows of ../shared/data. Every finished cell (a data set, a
method, a size) is kept under .factedit/bench and not run again; `report` writes RESULTS.md and the plots.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import plots, quality_report, wording_overlap
from benchmarks.cells import PUBLISHED, RESULTS, Cells, Json, write_section
from benchmarks.data import DATA, DATA_NAMES, DataName
from benchmarks.engine import BENCH, Engine, asked_of, default_model, home
from benchmarks.measures import Amounts
from benchmarks.quality_cells import BATCH, ROOT, SEQUENCE, Cell, Runner
from factedit.methods import EDITORS

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False, no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)


@dataclass(frozen=True)
class Setup:
    """What all commands share."""

    model: Path | None
    data: Path
    bench: Path
    device: str
    amounts: Amounts
    again: bool

    def runner(self) -> Runner:
        model = self.model or default_model(self.bench)
        console.print(f"the model of {model}")
        engine = Engine(model, self.bench, self.device)
        say = console.print if console.is_terminal else _milestones
        return Runner(engine, self.amounts, data=self.data, again=self.again, say=say)


def _milestones(text: str) -> None:
    """Not every step goes into a log."""
    if ": step " not in text:
        console.print(text)


@app.callback()
def shared(
    context: typer.Context,
    model_folder: Annotated[Path | None, typer.Option(help="Else the store's root, or the default.")] = None,
    data_folder: Annotated[Path, typer.Option(help="The folder of the data sets.")] = DATA,
    bench_folder: Annotated[Path, typer.Option(help="Where finished cells are kept.")] = BENCH,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    others: Annotated[int, typer.Option(min=1, help="Unrelated prompts that must stay.")] = 500,
    probes: Annotated[int, typer.Option(min=1, help="Known probes that must stay.")] = 500,
    tokens: Annotated[int, typer.Option(min=256, help="Of running text, for drift.")] = 8000,
    again: Annotated[bool, typer.Option(help="Run finished cells again.")] = False,
) -> None:
    amounts = Amounts(others, probes, tokens)
    context.obj = Setup(model_folder, data_folder, bench_folder, device, amounts, again)


Sizes = Annotated[str, typer.Option(help="Edits in a batch, separated by commas.")]
Start = Annotated[int, typer.Option(min=0, help="The first row.")]
Seed = Annotated[int, typer.Option(help="Of the method, and of the anchors.")]
Data = Annotated[DataName, typer.Option(help="A data set.")]
Method = Annotated[str, typer.Option(help=f"{', '.join(EDITORS)}, or {ROOT} for no edit at all.")]
BlocksText = Annotated[str | None, typer.Option(help="auto, first, last, or numbers separated by commas.")]
Norm = Annotated[str | None, typer.Option(help="l_inf, l_2 or none.")]
Radius = Annotated[float | None, typer.Option(help="Of the ball around the root.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="A field of MethodSpec, as damping=1e-2.")]


@app.command()
def run(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = ",".join(DATA_NAMES),
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = ",".join([ROOT, *EDITORS]),
    sizes: Sizes = "1,10,100,1000",
    sequences: Annotated[str, typer.Option(help="Methods that also edit CounterFact 10 times by 100.")] = "",
    start: Start = 0,
    seed: Seed = 0,
) -> None:
    """Every data set by every method by every size, the small ones first; what is finished is skipped."""
    no_overlap(context.obj.data)
    cells = [
        Cell(name, method, size, start, seed=seed)
        for size in sorted(int(size) for size in sizes.split(","))
        for name in DATA_NAMES
        if name in data.split(",")
        for method in methods.split(",")
    ]
    cells += [
        Cell("counterfact", method, 100, start, seed=seed, batches=10)
        for method in sequences.split(",")
        if method
    ]
    runner = context.obj.runner()
    for place, cell in enumerate(cells, start=1):
        found = runner.run(cell)
        console.print(f"[{place} of {len(cells)}] {cell}: {_brief(found)}")


@app.command()
def one(
    context: typer.Context,
    data: Data = "counterfact",
    method: Method = "auto",
    size: Annotated[int, typer.Option(min=1, help="Edits in the batch.")] = 100,
    start: Start = 0,
    blocks: BlocksText = None,
    norm: Norm = None,
    radius: Radius = None,
    sets: Sets = None,
    seed: Seed = 0,
) -> None:
    """One cell, with all that it found."""
    cell = Cell(data, method, size, start, asked_of(blocks, norm, radius, sets), seed)
    show(str(cell), context.obj.runner().run(cell))


@app.command()
def sequence(
    context: typer.Context,
    data: Data = "counterfact",
    method: Method = "auto",
    size: Annotated[int, typer.Option(min=1, help="Edits in each batch.")] = 100,
    batches: Annotated[int, typer.Option(min=2, help="Batches, one after another.")] = 10,
    start: Start = 0,
    blocks: BlocksText = None,
    norm: Norm = None,
    radius: Radius = None,
    sets: Sets = None,
    seed: Seed = 0,
) -> None:
    """Batches one after another, earlier ones kept by the ledger; measured at the end."""
    cell = Cell(data, method, size, start, asked_of(blocks, norm, radius, sets), seed, batches)
    show(str(cell), context.obj.runner().run(cell))


@app.command()
def sweep(
    context: typer.Context,
    values: Annotated[str, typer.Option(help="Separated by commas.")],
    what: Annotated[str, typer.Option(help="radius, or a number among MethodSpec's fields.")] = "radius",
    data: Data = "counterfact",
    method: Method = "auto",
    size: Annotated[int, typer.Option(min=1, help="Edits in the batch.")] = 100,
    start: Start = 0,
    blocks: BlocksText = None,
    norm: Norm = None,
    sets: Sets = None,
    plots_folder: Annotated[Path, typer.Option(help="Where the plot goes.")] = plots.PLOTS,
) -> None:
    """One choice at several values: a cell each, and their curve as a plot."""
    asked = asked_of(blocks, norm, None, sets)
    runner = context.obj.runner()
    shown = ("efficacy", "paraphrase", "others_clause", "known_kept")
    curves: dict[str, list[float]] = {name: [] for name in shown}
    points: list[float] = []
    for value in (json.loads(text) for text in values.split(",")):
        cell = Cell(data, method, size, start, {**asked, what: value})
        found = runner.run(cell)
        console.print(f"{cell}: {_brief(found)}")
        if "error" not in found:
            points.append(value)
            for name in shown:
                curves[name].append(quality_report.ratio(found[name]))
    path = plots_folder / f"sweep-{data}-{method}-{size}-{what}.svg"
    console.print(f"{plots.curve(path, f'{data}, {method}, {size} edits', what, points, curves)}")


@app.command()
def report(
    context: typer.Context,
    results: Annotated[Path, typer.Option(help="The file to write into.")] = RESULTS,
) -> None:
    """Write all finished cells, those of earlier runs too, into RESULTS.md, and draw the plots."""
    setup: Setup = context.obj
    folder = home(setup.model or default_model(setup.bench), setup.bench)
    cells = Cells(folder / "cells", results.parent / PUBLISHED.name / folder.name)
    write_section("quality", quality_report.report(cells, results.parent / plots.PLOTS.name), results)
    for kind in (BATCH, SEQUENCE):
        cells.publish(kind)
    console.print(f"{results} is written.")


def no_overlap(data: Path) -> None:
    """Raises typer.Exit if a wording that is trained on is one that is tested."""
    try:
        wording_overlap.main(data=data)
    except typer.Exit as end:
        if end.exit_code != 0:
            raise


def _brief(found: Json) -> str:
    if "error" in found:
        return str(found["error"])
    shown = ("efficacy", "paraphrase", "others_word", "others_clause", "known_kept")
    every = quality_report.ANSWERS
    return ", ".join(f"{name} {every[name][1](found[name])}" for name in shown)


def show(title: str, found: Json) -> None:
    if "error" in found:
        console.print(f"{title}: {found['error']}")
        raise typer.Exit(1)
    listed = Table("measure", "found", "of", title=title)
    columns = {**quality_report.FIRST, **quality_report.ANSWERS, **quality_report.REST}
    for key, (_, as_text) in columns.items():
        if key in found:
            of = str(found[key][1]) if isinstance(found[key], list) else ""
            listed.add_row(key, as_text(found[key]), of)
    console.print(listed)
    for sample in found["samples"]:
        console.print(f"{sample['prompt']!r} → {sample['answer']!r} (wanted: {sample['wanted']!r})")


if __name__ == "__main__":
    app()
