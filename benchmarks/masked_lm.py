"""A masked model edited as in "Modifying Memories": `python -m benchmarks.masked_lm --help`.

Memorised, not pretrained: `train` has a small BERT memorise T-REx facts in their evidence sentences, `run`
gives some of them another object of the same relation, trained in the same sentences and tested in the LAMA
template, and `report` tells the accuracy on modified facts, on unmodified ones, and their mean.

Source: Zhu et al. 2020, "Modifying Memories in Transformer Models", section 4. Objects are single tokens.
"""

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import masked_report
from benchmarks.cells import RESULTS, Cells, Json, share, write_section
from benchmarks.data import DATA
from benchmarks.engine import BENCH, Choices, Engine, asked_of, home
from benchmarks.masked_data import Amounts, Cloze, edit_of, objects_of, read_clozes
from benchmarks.masked_model import Shape, memorised, right
from benchmarks.masked_training import Limits, Memoriser, OtherRun, Settings
from benchmarks.plots import PLOTS
from benchmarks.trex import redrawn
from factedit.overlay import Overlay, applied
from factedit.task import EditingError

KIND = "masked"
STARTS = {"memorised": "model", "early": "early"}
EVERY_ANCHOR = 20_000

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False, no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)

BenchFolder = Annotated[Path, typer.Option(help="Where the model and finished cells are kept.")]
DataFolder = Annotated[Path, typer.Option(help="The folder of the data sets.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command()
def train(
    facts: Annotated[int, typer.Option(min=2, help="Facts to memorise.")] = 1500,
    evidence: Annotated[int, typer.Option(min=1, help="Evidence sentences of a fact, at most.")] = 2,
    patterns: Annotated[int, typer.Option(min=0, help="Paraphrase patterns of a fact, at most.")] = 2,
    layers: Annotated[int, typer.Option(min=1, help="Transformer layers.")] = 4,
    width: Annotated[int, typer.Option(min=4, help="Hidden size, a multiple of 4.")] = 192,
    vocabulary: Annotated[int, typer.Option(min=100, help="Word pieces, objects aside.")] = 7000,
    learning_rate: Annotated[float, typer.Option(help="AdamW's, after warming up.")] = 1e-3,
    enough: Annotated[float, typer.Option(help="Share of facts memorised at which to stop.")] = 0.98,
    early: Annotated[float, typer.Option(help="Share at which the early start is kept.")] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="In all, at most.")] = 5000,
    seconds: Annotated[float, typer.Option(help="In this call, at most.")] = 480,
    seed: Annotated[int, typer.Option(help="Of the facts, the weights, and the order.")] = 0,
    data_folder: DataFolder = DATA,
    bench_folder: BenchFolder = BENCH,
    device: Device = "auto",
    again: Annotated[bool, typer.Option(help="Begin anew.")] = False,
) -> None:
    """Train until enough is memorised or a limit is reached; called again, it goes on."""
    folder = bench_folder / "masked"
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    settings = Settings(
        amounts=Amounts(facts, evidence, patterns),
        shape=Shape(layers, width, vocabulary=vocabulary),
        learning_rate=learning_rate,
        early=early,
        seed=seed,
    )
    clozes = read_clozes(data_folder, settings.amounts, seed)
    try:
        memoriser = Memoriser(folder, clozes, settings, device)
    except OtherRun as error:
        console.print(str(error))
        raise typer.Exit(1) from error
    state = memoriser.train(Limits(enough, steps, seconds), console.print)
    console.print(f"Stopped: {state['why']}. {masked_report.introduction(state)}")


@dataclass(frozen=True, slots=True)
class Trained:
    """What `train` has left in the bench's folder."""

    folder: Path
    clozes: list[Cloze]
    state: Mapping[str, Any]

    @classmethod
    def of(cls, bench: Path, data: Path) -> "Trained":
        """Raises typer.Exit: nothing is trained yet, or the data are others."""
        folder = bench / "masked"
        if not (folder / "state.json").exists():
            console.print("Nothing is trained yet: python -m benchmarks.masked_lm train")
            raise typer.Exit(1)
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        clozes = read_clozes(data, Amounts(**settings["amounts"]), settings["seed"])
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return cls(folder, clozes, state)

    def engine(self, start: str, bench: Path, device: str) -> Engine:
        return Engine(self.folder / STARTS[start], bench, device)


def known_to(engine: Engine, clozes: Sequence[Cloze]) -> list[Cloze]:
    """The facts that are right in all their evidence sentences and in the test's words."""

    def run() -> list[bool]:
        tested = right(engine.lm, [(cloze.test, cloze.memory.object) for cloze in clozes])
        return [a and b for a, b in zip(memorised(engine.lm, clozes), tested, strict=True)]

    found: list[bool] = engine.root("clozes", [asdict(cloze) for cloze in clozes], run)
    return [cloze for cloze, good in zip(clozes, found, strict=True) if good]


def measured(
    engine: Engine,
    choices: Choices,
    known: Sequence[Cloze],
    objects: Mapping[str, Mapping[str, int]],
    count: int,
    unmodified: int,
) -> Json:
    """Modify `count` of the known facts and ask for them, and for others, again."""
    by_id = {cloze.memory.id: cloze for cloze in known}
    drawn = redrawn([cloze.memory for cloze in known], objects, count, choices.seed)
    modified = [(by_id[memory.id], new) for memory, new in drawn]
    moved = {memory.id for memory, _ in drawn}
    rest = [cloze for cloze in known if cloze.memory.id not in moved]
    random.Random(choices.seed).shuffle(rest)
    if not modified or not rest:
        raise EditingError(f"{len(known)} known facts are too few to modify {count} and ask for others.")
    edits = [edit_of(cloze, new) for cloze, new in modified]
    kept = [(cloze, cloze.memory.object) for cloze in rest[:unmodified]]
    before = right(engine.lm, [(cloze.test, target) for cloze, target in kept])
    made = engine.make(choices, edits, anchors=[s for cloze in rest for s in cloze.evidence])
    edited = made.edited
    return {
        "known": len(known),
        "before": share(before),
        **answered(engine, edited.tensors, "modified", modified),
        **answered(engine, edited.tensors, "unmodified", kept),
        "seconds_per_edit": made.seconds / len(edits),
        **{name: edited.metrics[name] for name in ("max_abs_change", "steps", "edits_holding")},
        **{name: edited.chosen[name] for name in ("norm", "radius", "blocks", "examples")},
    }


def answered(engine: Engine, overlay: Overlay, name: str, asked: Sequence[tuple[Cloze, str]]) -> Json:
    """How many facts have these objects now: in the test's words, and in all their evidence sentences."""
    with applied(engine.lm, overlay):
        tested = right(engine.lm, [(cloze.test, target) for cloze, target in asked])
        read = memorised(engine.lm, [cloze for cloze, _ in asked], [target for _, target in asked])
    return {name: share(tested), f"{name}_evidence": share(read)}


@dataclass(frozen=True, slots=True)
class Cell:
    start: str
    count: int
    method: str
    asked: dict[str, Any]


def cells_of(
    starts: str, counts: str, methods: str, blocks: str, radii: str, more: Mapping[str, Any], n_blocks: int
) -> Iterator[Cell]:
    """Every method in every block by every number of facts; a method in a ball by every radius.

    The block `auto` is what a trial finds (factedit.block_trials), with the radius of its own.
    """
    places = {"first": 0, "middle": (n_blocks - 1) // 2, "last": n_blocks - 1}
    for start in starts.split(","):
        for count in (int(text) for text in counts.split(",")):
            for method in methods.split(","):
                # The paper's objectives hold no unmodified fact but those that FTA mixes in.
                beside = {"count": EVERY_ANCHOR if method == "fta" else 0, "weight": 0.0}
                usual = {"parameters": "all", "anchors": beside, **more}
                for block in blocks.split(","):
                    found = "auto" if block == "auto" else [places[block] if block in places else int(block)]
                    asked = {"blocks": found, **usual}
                    if method != "constrained_ftm" or block == "auto":
                        yield Cell(start, count, method, asked)
                        continue
                    for radius in (float(text) for text in radii.split(",")):
                        yield Cell(start, count, method, {**asked, "norm": "l_inf", "radius": radius})


@app.command()
def run(
    methods: Annotated[str, typer.Option(help="Separated by commas.")] = "ftm,fta,constrained_ftm",
    counts: Annotated[str, typer.Option(help="How many facts to modify, separated by commas.")] = "32,128",
    blocks: Annotated[
        str, typer.Option(help="first, middle, last, auto or numbers.")
    ] = "first,middle,last,auto",
    radii: Annotated[str, typer.Option(help="Of the l_inf ball.")] = "0.003,0.005,0.01",
    starts: Annotated[str, typer.Option(help="memorised, early.")] = "memorised",
    unmodified: Annotated[int, typer.Option(min=1, help="Unmodified facts to ask for again.")] = 1000,
    sets: Annotated[list[str] | None, typer.Option("--set", help="A field of MethodSpec.")] = None,
    seed: Annotated[int, typer.Option(help="Of the facts, their new objects, and the method.")] = 0,
    data_folder: DataFolder = DATA,
    bench_folder: BenchFolder = BENCH,
    device: Device = "auto",
    again: Annotated[bool, typer.Option(help="Run finished cells again.")] = False,
) -> None:
    """Edit the memorised model; what is finished is skipped."""
    trained = Trained.of(bench_folder, data_folder)
    engine = trained.engine("memorised", bench_folder, device)
    engines, objects = {"memorised": engine}, objects_of(trained.clozes)
    known = known_to(engine, trained.clozes)
    console.print(f"{len(known)} of {len(trained.clozes)} facts are known.")
    more = asked_of(sets=sets)
    for cell in cells_of(starts, counts, methods, blocks, radii, more, engine.lm.n_blocks):
        if cell.start not in engines:
            engines[cell.start] = trained.engine(cell.start, bench_folder, device)
        mine = engines[cell.start]
        choices = Choices.of(cell.method, cell.asked, seed)
        identity = {**asdict(cell), "resolved": choices.resolved(mine.lm), "unmodified": unmodified}
        try:
            work = partial(measured, mine, choices, known, objects, cell.count, unmodified)
            found = engine.cells.once(KIND, identity, work, again=again)
        except EditingError as error:
            console.print(f"{cell}: {error}")
            continue
        told = ", ".join(f"{name} {show(found)}" for name, show in masked_report.COLUMNS)
        place = f"block {found['blocks'][0]}, radius {found['radius']}"
        console.print(f"{cell.count} facts, {cell.start}, {cell.method}, {place}: {told}")


@app.command()
def report(
    data_folder: DataFolder = DATA,
    bench_folder: BenchFolder = BENCH,
    results: Annotated[Path, typer.Option(help="The file to write into.")] = RESULTS,
    plots: Annotated[Path, typer.Option(help="The folder of the plots.")] = PLOTS,
) -> None:
    """Print all finished cells as a table, write it between the markers of RESULTS.md, and draw the plots."""
    trained = Trained.of(bench_folder, data_folder)
    cells = Cells(home(trained.folder / STARTS["memorised"], bench_folder) / "cells")
    text = masked_report.as_markdown(cells.all(KIND), trained.state, plots)
    print(text)
    write_section(KIND, text, results)


if __name__ == "__main__":
    app()
