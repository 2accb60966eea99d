"""T-REx in the way of "Modifying Memories": `python -m benchmarks.trex --help`.

The facts that the root predicts among their relation's objects are its memories. Some of them get another
object of the same relation; the method trains on paraphrase patterns, and what is then predicted is told
for the modified and for the unmodified ones, in the LAMA template, which is never trained on. The paper
trains a masked model on evidence sentences instead; a causal one can't fill in a mask in their middle.

Source: Zhu et al. 2020, "Modifying Memories in Transformer Models", section 4.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.cells import (
    PUBLISHED,
    RESULTS,
    Cells,
    Json,
    code_digest,
    number,
    percent,
    share,
    table,
    write_section,
)
from benchmarks.data import DATA
from benchmarks.engine import BENCH, Choices, Engine, asked_of, default_model, home
from factedit.facts import Edit, Probe
from factedit.outcomes import ProbeOutcome
from factedit.scoring import score_probes
from factedit.task import EditingError

X, Y = "[X]", "[Y]"
PATTERNS = 4
KIND = "trex"

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False, no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation: what its facts are tested in, what they are trained on, its objects by frequency.

    All of them are words that stand before the object, with `[X]` for the subject.
    """

    name: str
    test: str
    training: tuple[str, ...]
    objects: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Memory:
    """A fact of T-REx."""

    id: str
    relation: str
    subject: str
    object: str


def before_object(pattern: str, *, at_end: bool) -> str | None:
    """The words before the object, where the subject is among them; `at_end`: nothing may follow it."""
    head, found, tail = pattern.partition(Y)
    if not found or X not in head or (at_end and any(c.isalnum() for c in tail)):
        return None
    return " ".join(head.split())


def read_trex(data: Path) -> tuple[dict[str, Relation], list[Memory]]:
    """The relations that a causal model can be asked, and their facts."""
    relations: dict[str, Relation] = {}
    memories: list[Memory] = []
    for raw in lines(data / "trex/relations.jsonl"):
        name = raw["relation"]
        facts, patterns = (data / "trex" / folder / f"{name}.jsonl" for folder in ("facts", "patterns"))
        test = before_object(raw["template"], at_end=False)
        if test is None or not facts.exists():
            continue
        found = [Memory(f"{name}-{f['uuid']}", name, f["sub_label"], f["obj_label"]) for f in lines(facts)]
        # Of several objects of one subject any would be right: the first stands for all.
        kept = list({fact.subject: fact for fact in reversed(found)}.values())
        heads = (
            [before_object(p["pattern"], at_end=True) for p in lines(patterns)] if patterns.exists() else []
        )
        relations[name] = Relation(
            name, test, training_heads(heads, test), Counter(fact.object for fact in kept)
        )
        memories += kept
    return relations, memories


def training_heads(heads: Iterable[str | None], test: str) -> tuple[str, ...]:
    """As many as `PATTERNS`, each once, none of which is the test's."""
    others = {head.casefold(): head for head in heads if head and head.casefold() != test.casefold()}
    return tuple(others.values())[:PATTERNS]


def lines(path: Path) -> list[Json]:
    """What a file of JSON lines holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def modifications(
    known: Sequence[Memory], relations: Mapping[str, Relation], count: int, seed: int
) -> list[tuple[Memory, str]]:
    """Some known facts that there are words to train in, and a new object for each."""
    fit = [memory for memory in known if relations[memory.relation].training]
    return redrawn(fit, {name: relation.objects for name, relation in relations.items()}, count, seed)


def redrawn(
    known: Sequence[Memory], objects: Mapping[str, Mapping[str, int]], count: int, seed: int
) -> list[tuple[Memory, str]]:
    """Some known facts and a new object for each, drawn in proportion to its frequency in the relation."""
    rng = random.Random(seed)
    fit = [memory for memory in known if len(objects[memory.relation]) > 1]
    chosen: list[tuple[Memory, str]] = []
    for memory in rng.sample(fit, min(count, len(fit))):
        weights = {o: n for o, n in objects[memory.relation].items() if o != memory.object}
        (new,) = rng.choices(list(weights), list(weights.values()))
        chosen.append((memory, new))
    return chosen


def edit_of(memory: Memory, new: str, relation: Relation) -> Edit:
    """The training patterns only."""
    prompt, *paraphrases = [head.replace(X, memory.subject) for head in relation.training]
    return Edit(memory.id, memory.subject, new, prompt=prompt, paraphrases=tuple(paraphrases))


def probe_of(memory: Memory, target: str, relation: Relation) -> Probe:
    prompt = relation.test.replace(X, memory.subject)
    return Probe(memory.id, prompt, target, candidates=tuple(relation.objects))


def known_to(engine: Engine, relations: Mapping[str, Relation], memories: Sequence[Memory]) -> list[Memory]:
    """The facts whose object the root ranks first."""
    probes = [probe_of(m, m.object, relations[m.relation]) for m in memories]
    asked = [[(p.prompt, p.object) for p in probes], {n: list(r.objects) for n, r in relations.items()}]

    def run() -> list[bool]:
        return [bool(outcome.ranked_first) for outcome in score_probes(engine.lm, {}, probes)]

    found: list[bool] = engine.root("T-REx", asked, run)
    return [memory for memory, good in zip(memories, found, strict=True) if good]


def measured(
    engine: Engine, choices: Choices, count: int, unmodified: int, relation_names: Sequence[str], data: Path
) -> Json:
    """Modify `count` of the root's memories and predict them, and others, again."""
    relations, memories = read_trex(data)
    if relation_names:
        memories = [m for m in memories if m.relation in relation_names]
    known = known_to(engine, relations, memories)
    chosen = modifications(known, relations, count, choices.seed)
    moved = {memory.id for memory, _ in chosen}
    rest = [memory for memory in known if memory.id not in moved]
    random.Random(choices.seed).shuffle(rest)
    new = [probe_of(m, target, relations[m.relation]) for m, target in chosen]
    old = [probe_of(m, m.object, relations[m.relation]) for m in rest[:unmodified]]
    edits = [edit_of(m, target, relations[m.relation]) for m, target in chosen]
    if not edits:
        raise EditingError("The root knows no fact that could be modified.")
    made = engine.make(choices, edits, avoid=[probe.prompt for probe in (*new, *old)])
    after_new = score_probes(engine.lm, made.edited.tensors, new)
    after_old = score_probes(engine.lm, made.edited.tensors, old)
    return {
        "known": [len(known), len(memories)],
        "modified": first(after_new),
        "modified_begins": share(outcome.answer_right for outcome in after_new),
        "unmodified": first(after_old),
        "mean": mean(first(after_new), first(after_old)),
        "seconds_per_edit": made.seconds / len(edits),
        "max_abs_change": made.edited.metrics["max_abs_change"],
        "steps": made.edited.metrics["steps"],
        "norm": made.edited.chosen["norm"],
        "radius": made.edited.chosen["radius"],
        "blocks": made.edited.chosen["blocks"],
    }


def first(outcomes: Sequence[ProbeOutcome]) -> list[int]:
    return share(bool(outcome.ranked_first) for outcome in outcomes)


def mean(modified: Sequence[int], unmodified: Sequence[int]) -> float | None:
    """Of both accuracies, as in the paper; None if either was not measured."""
    if not modified[1] or not unmodified[1]:
        return None
    return (modified[0] / modified[1] + unmodified[0] / unmodified[1]) / 2


ModelFolder = Annotated[Path | None, typer.Option(help="Else the store's root, or the default.")]
BenchFolder = Annotated[Path, typer.Option(help="Where finished cells are kept.")]


@app.command()
def run(
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "auto,constrained_ftm,ftm",
    counts: Annotated[
        str, typer.Option(help="How many facts to modify, separated by commas.")
    ] = "32,128,512",
    unmodified: Annotated[int, typer.Option(min=1, help="Unmodified facts to predict again.")] = 1000,
    relations: Annotated[str, typer.Option(help="As P19,P36; else all.")] = "",
    blocks: Annotated[str | None, typer.Option(help="auto, first, last, or numbers.")] = None,
    norm: Annotated[str | None, typer.Option(help="l_inf, l_2 or none.")] = None,
    radius: Annotated[float | None, typer.Option(help="Of the ball around the root.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="A field of MethodSpec.")] = None,
    seed: Annotated[int, typer.Option(help="Of the facts, their new objects, and the method.")] = 0,
    model_folder: ModelFolder = None,
    data_folder: Annotated[Path, typer.Option(help="The folder of the data sets.")] = DATA,
    bench_folder: BenchFolder = BENCH,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    again: Annotated[bool, typer.Option(help="Run finished cells again.")] = False,
) -> None:
    """Every method by every number of modified facts; what is finished is skipped."""
    engine = Engine(model_folder, bench_folder, device)
    asked = asked_of(blocks, norm, radius, sets)
    names = [name for name in relations.split(",") if name]
    for count in (int(text) for text in counts.split(",")):
        for method in methods.split(","):
            choices = Choices.of(method, asked, seed)
            try:
                identity = {
                    "method": method,
                    "asked": asked,
                    "resolved": choices.resolved(engine.lm),
                    "count": count,
                    "unmodified": unmodified,
                    "relations": names,
                }
                work = _work(engine, choices, count, unmodified, names, data_folder)
                found = engine.cells.once(KIND, identity, work, again=again)
            except EditingError as error:
                console.print(f"{method}, {count} facts: {error}")
                continue
            console.print(f"{method}, {count} facts: " + ", ".join(f"{h} {s(found)}" for h, s in COLUMNS))


def _work(engine: Engine, choices: Choices, count: int, unmodified: int, names: list[str], data: Path) -> Any:
    return lambda: measured(engine, choices, count, unmodified, names, data)


@app.command()
def report(
    model_folder: ModelFolder = None,
    bench_folder: BenchFolder = BENCH,
    results: Annotated[Path, typer.Option(help="The file to write into.")] = RESULTS,
) -> None:
    """Write all finished cells of the model between the markers of RESULTS.md."""
    folder = home(model_folder or default_model(bench_folder), bench_folder)
    cells = Cells(folder / "cells", results.parent / PUBLISHED.name / folder.name)
    write_section("trex", as_markdown(cells), results)
    cells.publish(KIND)
    console.print(f"{results} is written.")


def _mean(found: Json) -> str:
    return "-" if found["mean"] is None else f"{found['mean']:.1%}"


COLUMNS = (
    ("modified", lambda found: percent(found["modified"])),
    ("unmodified", lambda found: percent(found["unmodified"])),
    ("mean", _mean),
    ("modified, by generation", lambda found: percent(found["modified_begins"])),
    ("s an edit", lambda found: number(found["seconds_per_edit"])),
    ("largest change", lambda found: number(found["max_abs_change"])),
    ("steps", lambda found: str(found["steps"])),
)


def as_markdown(cells: Cells) -> str:
    """The table of the paper: accuracy on modified facts, on unmodified ones, and their mean."""
    rows = []
    for cell in sorted(cells.all(KIND), key=lambda cell: int(cell["cell"]["count"])):
        found, what = cell["found"], cell["cell"]
        stale = "" if cell["code"] == code_digest() else " †"
        radius = "" if found["radius"] is None else f" {found['radius']:g}"
        rows.append(
            [
                f"{found['modified'][1]} of {found['known'][0]}",
                what["method"] + stale,
                f"{found['norm']}{radius}",
                ", ".join(str(block) for block in found["blocks"]) or "-",
                *(show(found) for _, show in COLUMNS),
            ]
        )
    header = ["facts modified", "method", "ball", "blocks", *(name for name, _ in COLUMNS)]
    return f"## T-REx: `make bench-trex`\n\n{INTRODUCTION}\n\n{table(header, rows)}"


INTRODUCTION = """\
Facts that the root ranks first among their relation's objects; new objects are drawn by frequency; trained
on paraphrase patterns, tested in the LAMA template by the same ranking. The paper trains masked models on
evidence sentences, so its figures are not these. † measured with an earlier state of the library's code."""


if __name__ == "__main__":
    app()
