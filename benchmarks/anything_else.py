"""Asked anything else of an edited subject: `python -m benchmarks.anything_else --help`.

A user's edits by prompt (a data set's rows: statements in CounterFact, questions in the others) in batches;
then each subject is asked what other relations of the catalogue ask, in their evaluation templates, which
nothing is trained in or told of. Whatever the root says there is to stay, sensible or not; worst of all is
the new object where another relation is asked.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cells import percent, table
from benchmarks.data import DATA, DataName, Row, read_rows
from benchmarks.engine import BENCH, Choices, Engine
from benchmarks.limits import machine
from benchmarks.measures import answers
from benchmarks.options import BenchOption, DataOption, DeviceOption, ModelOption
from factedit.answers import begins_with
from factedit.overlay import applied
from factedit.recognition import recognise
from factedit.relations import builtin_catalogue

TOKENS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """Questions; of them, those answered as by the root (the whole answer; its first word), and with the new
    object; edits that hold; their paraphrases in words of the data set's own, and those that are right."""

    asked: int
    same: int
    first: int
    new: int
    holding: int
    paraphrases: int
    right: int


def questions_of(row: Row, count: int) -> list[str]:
    """Of other relations than the row's, so many in words that only ever score.

    Not of those whose own words are recognised to ask for the same.
    """
    own = _family(row, row.prompt)
    prompts = [
        prompt
        for name, relation in sorted(builtin_catalogue().relations.items())
        if name != own and own not in {_family(row, told) for told in relation.training_prompts(row.subject)}
        for prompt in relation.evaluation_prompts(row.subject)
    ]
    return random.Random(row.subject).sample(prompts, min(count, len(prompts)))


def _family(row: Row, prompt: str) -> str | None:
    seen = recognise(prompt, row.subject, row.new_object)
    return None if seen is None else seen.name


def measured(engine: Engine, method: str, rows: Sequence[Row], count: int) -> Found:
    """One batch by one method."""
    asked = [(row, prompt) for row in rows for prompt in questions_of(row, count)]
    prompts = [prompt for _, prompt in asked]
    made = engine.make(Choices.of(method, {}), [row.edit for row in rows])
    before = engine.root_answers(prompts, TOKENS)
    with applied(engine.lm, made.edited.tensors):
        after = [answer.text for answer in engine.ask(prompts, TOKENS, said=before)]
    held = answers(engine, made.edited.tensors, rows)
    both = list(zip(before, after, strict=True))
    return Found(
        len(asked),
        sum(one == other for one, other in both),
        sum(one.split()[:1] == other.split()[:1] for one, other in both),
        sum(
            begins_with(other, (row.new_object,)) and not begins_with(one, (row.new_object,))
            for (row, _), (one, other) in zip(asked, both, strict=True)
        ),
        held["efficacy"][0],
        held["paraphrase"][1],
        held["paraphrase"][0],
    )


def main(
    method: Annotated[list[str] | None, typer.Option("--method", help="Each in turn; auto if none.")] = None,
    start: Annotated[int, typer.Option(min=0, help="The first row.")] = 1000,
    count: Annotated[int, typer.Option(min=1, help="Rows whose words are recognised.")] = 40,
    of: Annotated[DataName, typer.Option(help="Whose rows.")] = "counterfact",
    at_once: Annotated[int, typer.Option(min=1, help="Edits in a batch.")] = 10,
    each: Annotated[int, typer.Option(min=1, help="Questions of each subject.")] = 20,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    data: DataOption = DATA,
    bench: BenchOption = BENCH,
) -> None:
    """Edit a data set's rows, ask other things of their subjects, and print a table."""
    engine, out = Engine(model, bench, device), Console(soft_wrap=True, highlight=False)
    every = read_rows(of, data)[start:]
    rows = [row for row in every if recognise(row.prompt, row.subject, row.new_object)][:count]
    batches = [rows[at : at + at_once] for at in range(0, len(rows), at_once)]
    lines: list[list[str]] = []
    for name in method or ["auto"]:
        found = [measured(engine, name, batch, each) for batch in batches]
        asked, same, first, new, holding, paraphrases, right = (
            sum(getattr(one, part) for one in found) for part in Found.__slots__
        )
        edited = [f"{holding} of {len(rows)}", f"{right} of {paraphrases}"]
        lines.append([name, *edited, str(asked), *(percent([part, asked]) for part in (same, first, new))])
    header = ["method", "efficacy", "paraphrase", "other questions"]
    header += ["answered the same", "first word the same", "with the new object"]
    out.print(machine(engine.lm.device))
    out.print(table(header, lines))


if __name__ == "__main__":
    typer.run(main)
