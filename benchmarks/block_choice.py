"""Which blocks are best, and which `blocks: auto` chooses: `python -m benchmarks.block_choice --help`.

`constrained_ftm` edits each batch with `blocks: auto`, which chooses blocks and radius by a trial
(factedit.block_trials), and then in every window of blocks that it could have chosen, with the radius that it
chose; and in the usual blocks with the usual radius. The score is the mean of efficacy, paraphrase and
locality, each by free generation. Two models: the default one, on CounterFact, zsRE and WikiBigEdit; and the
tests' toy model, whose facts are its own. A choice is right if no window's score is better by more than a
hundredth.
"""

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.cells import RESULTS, Cells, Json, code_digest, table, write_section
from benchmarks.data import DATA, DATA_NAMES, read_rows
from benchmarks.engine import BENCH, Choices, Engine
from benchmarks.exam import in_unseen_words
from benchmarks.options import BenchOption, DataOption, DeviceOption
from factedit.block_trials import windows
from factedit.facts import Edit
from factedit.overlay import applied
from factedit.relations import Relation, builtin_catalogue
from factedit.scoring import score_edits
from factedit.task import plan
from factedit.toy import toy_facts, write_toy_model

AUTO, USUAL = "auto", "usual"
KIND, METHOD = "block_choice", "constrained_ftm"
NEAR = 0.01
"""Scores this near to the best are as good."""
FIRST, UNRELATED = 100, range(1500, 1560)
"""The first row that is edited; rows whose prompts are asked before and after."""
ANSWER = 3
"""Tokens of an answer to a prompt that is only to stay the same: its first word is compared."""

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False, no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False, markup=False)


@dataclass(frozen=True, slots=True)
class Case:
    """A batch. `paraphrases`: the same edits in words that they are not trained in; `others`: prompts whose
    answers are to stay; `anchors`: None for the catalogue's."""

    name: str
    edits: list[Edit]
    paraphrases: list[Edit]
    others: list[str]
    relations: dict[str, Relation]
    anchors: list[str] | None = None


def real_cases(data: Path, sizes: Sequence[int], batches: int) -> Iterator[Case]:
    for name in DATA_NAMES:
        rows = read_rows(name, data)
        unrelated = [rows[place].prompt for place in UNRELATED if place < len(rows)]
        for size in sizes:
            for batch in range(batches):
                mine = rows[FIRST + batch * size : FIRST + (batch + 1) * size]
                again = [
                    Edit(row.id, row.subject, row.new_object, prompt=row.paraphrase)
                    for row in mine
                    if in_unseen_words(row)
                ]
                others = [*(row.locality for row in mine), *unrelated]
                yield Case(f"{name} {size} #{batch}", [row.edit for row in mine], again, others, {})


def toy_cases(sizes: Sequence[int], batches: int) -> Iterator[Case]:
    """Another capital for some countries; anchors are half of the rest, the other half is asked again."""
    facts, relations = toy_facts(), builtin_catalogue().relations
    for size in sizes:
        for batch in range(batches):
            rng = random.Random(f"{size} {batch}")
            chosen = rng.sample(facts, size)
            rest = [fact for fact in facts if fact not in chosen]
            edits = [
                Edit(fact.subject, fact.subject, other.object, relation=fact.relation)
                for fact, other in zip(chosen, [*chosen[1:], rest[0]], strict=True)
            ]
            again = [
                Edit(edit.id, edit.subject, edit.new_object, prompt=prompt)
                for edit in edits
                for prompt in relations["capital"].evaluation_prompts(edit.subject)
            ]
            anchors = [relations["capital"].training_prompts(fact.subject)[0] for fact in rest[::2]]
            others = [relations["capital"].evaluation_prompts(fact.subject)[0] for fact in rest[1::2]]
            yield Case(f"toy {size} #{batch}", edits, again, others, dict(relations), anchors)


def measured(engine: Engine, case: Case, asked: dict[str, Any]) -> Json:
    """Edit, and ask again."""
    before = engine.root_answers(case.others, ANSWER)
    choices = Choices.of(METHOD, asked)
    tried_at: list[float] = []

    def noted(state: dict[str, Any]) -> None:
        if "windows_tried" in state:
            tried_at.append(time.perf_counter())

    made = engine.make(choices, case.edits, anchors=case.anchors, relations=case.relations, progress=noted)
    overlay = made.edited.tensors
    held = score_edits(engine.lm, overlay, case.edits, case.relations)
    again = score_edits(engine.lm, overlay, case.paraphrases, case.relations)
    with applied(engine.lm, overlay):
        after = [answer.text for answer in engine.ask(case.others, ANSWER)]
    parts = {
        "efficacy": sum(outcome.right for outcome in held) / len(held),
        "paraphrase": sum(outcome.right for outcome in again) / max(1, len(again)),
        "locality": sum(_first(a) == _first(b) for a, b in zip(before, after, strict=True)) / len(before),
    }
    return {
        **parts,
        "score": sum(parts.values()) / len(parts),
        "blocks": made.edited.chosen["blocks"],
        "radius": made.edited.chosen["radius"],
        "tried": made.edited.chosen.get("tried"),
        "trying_seconds": tried_at[-1] - tried_at[0] if tried_at else None,
        "seconds": made.seconds,
    }


@app.command()
def run(
    sizes: Annotated[str, typer.Option(help="Edits in a batch, separated by commas.")] = "8,32",
    batches: Annotated[int, typer.Option(help="Batches of each size and set.")] = 1,
    toy_sizes: Annotated[str, typer.Option(help="The same for the toy model.")] = "1,3,10,20",
    toy_batches: Annotated[int, typer.Option(help="Batches of each size there.")] = 4,
    data: DataOption = DATA,
    bench: BenchOption = BENCH,
    device: DeviceOption = "auto",
) -> None:
    """Edit every batch in every window and where `auto` chooses; what is finished is skipped."""
    with tempfile.TemporaryDirectory() as folder:
        if toy_sizes:
            write_toy_model(Path(folder))
            toy = Engine(Path(folder), bench, device)
            _run(toy, bench, toy_cases(_numbers(toy_sizes), toy_batches))
    if sizes:
        _run(Engine(None, bench, device), bench, real_cases(data, _numbers(sizes), batches))


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


def _run(engine: Engine, bench: Path, cases: Iterator[Case]) -> None:
    usual = plan(engine.lm, Choices.of(METHOD, {}).method, "auto", Choices.of(METHOD, {}).constraint)
    cells = Cells(bench / "cells")
    for case in cases:
        auto: Json = {}
        for asked in (AUTO, *windows(engine.lm.n_blocks, usual.blocks), USUAL):
            identity = {"case": case.name, "asked": asked, "usual": usual.blocks}
            radius = usual.radius if asked == USUAL else auto.get("radius")
            blocks = usual.blocks if asked == USUAL else asked
            choices = {} if asked == AUTO else {"blocks": blocks, "norm": "l_inf", "radius": radius}
            same = asked == auto.get("blocks")  # the same edit, which gives the same
            work = (lambda found=auto: found) if same else partial(measured, engine, case, choices)
            found = cells.once(KIND, identity, work)
            auto = found if asked == AUTO else auto
            console.print(
                f"{case.name}, {asked}: blocks {_depth(found['blocks'])}, radius {found['radius']:.3g}, "
                f"score {found['score']:.3f}, {found['seconds']:.1f} s"
            )


@app.command()
def report(
    bench: BenchOption = BENCH,
    results: Annotated[Path, typer.Option(help="The file to write into.")] = RESULTS,
) -> None:
    """Print how often each choice is right, and write it between the markers of RESULTS.md."""
    text = as_markdown(Cells(bench / "cells").all(KIND))
    print(text)
    write_section(KIND, text, results)


def as_markdown(cells: Sequence[Json]) -> str:
    """The tables: a row a choice, and a row a batch."""
    batches: dict[str, dict[str, Json]] = defaultdict(dict)
    for cell in cells:
        asked = cell["cell"]["asked"]
        batches[cell["cell"]["case"]][asked if asked in (AUTO, USUAL) else _depth(asked)] = cell["found"]
    rows: list[list[str]] = []
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for case, found in batches.items():
        if not {AUTO, USUAL} <= found.keys():
            continue  # not finished
        auto, usual = found[AUTO], found[USUAL]
        by_window = {name: each["score"] for name, each in found.items() if name not in (AUTO, USUAL)}
        best, model = max(by_window.values()), "toy" if case.startswith("toy") else "default"
        for name, score in {"`auto`": auto["score"], **by_window}.items():
            scores[f"{model} model, {name}"].append((score, best))
        scores[f"{model} model, usual blocks and radius"].append((usual["score"], best))
        rows.append(
            [
                case,
                "; ".join(f"{name}: {score:.2f}" for name, score in by_window.items()),
                f"{_depth(usual['blocks'])}, {usual['radius']:.2g}: {usual['score']:.2f}",
                f"{_depth(auto['blocks'])}, {auto['radius']:.2g}: {auto['score']:.2f}",
                f"{auto['trying_seconds'] / auto['seconds']:.0%}",
            ]
        )
    stale = any(cell["code"] != code_digest() for cell in cells)
    told = [
        "## Which blocks: `python -m benchmarks.block_choice run`, then `report`",
        (__doc__ or "").split("\n\n", 1)[1].strip(),
        *(["Some were measured with an earlier state of the library's code."] if stale else []),
        table(["choice", "right", "mean score"], [_line(*each) for each in sorted(scores.items())]),
        table(["batch", "score by window", "usual", "chosen", "trial's share of the time"], rows),
    ]
    return "\n\n".join(told)


def _first(answer: str) -> str:
    return next(iter(answer.split()), "")


def _depth(blocks: Sequence[int]) -> str:
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]}-{blocks[-1]}"


def _line(name: str, scores: Sequence[tuple[float, float]]) -> list[str]:
    right = sum(score >= best - NEAR for score, best in scores)
    return [name, f"{right} of {len(scores)}", f"{sum(score for score, _ in scores) / len(scores):.3f}"]


if __name__ == "__main__":
    app()
