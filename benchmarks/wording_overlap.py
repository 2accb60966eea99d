"""No wording that we train on is one that a benchmark tests: `python -m benchmarks.wording_overlap --help`.

Compares the templates of `factedit/catalogue/wordings` and the catalogue's training templates with the
paraphrases of CounterFact, zsRE and WikiBigEdit, CounterFact's own prompts (each is another row's
paraphrase), T-REx's patterns and the catalogue's evaluation templates. Fails if any coincides.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from factedit.recognition import load_wordings
from factedit.relations import SUBJECT, builtin_catalogue

ROWS = (
    ("counterfact/counterfact.json", "rephrase_prompt"),
    ("counterfact/counterfact.json", "prompt"),
    ("counterfact/counterfact_10k.json", "rephrase_prompt"),
    ("counterfact/counterfact_10k.json", "prompt"),
    ("zsre/zsre.json", "rephrase"),
    ("wikibigedit/wikibigedit.json", "rephrase_prompt"),
)
"""The files that hold evaluation wordings, and the field that does."""


def normalised(text: str) -> str:
    """Lower case, single spaces, no quotation marks, no article before the subject, bare ends."""
    folded = re.sub(r"\s+", " ", re.sub(r"[\"“”«»]", "", text.casefold())).strip()
    folded = folded.replace(f"the {SUBJECT}", SUBJECT)
    return re.sub(r"^[^\w{]+|[^\w}]+$", "", folded)


def wordings_of(text: str, subject: str) -> Iterator[str]:
    """A row's wording with the subject taken out: all of it, and from each sentence's start that has it.

    CounterFact's paraphrases stand after a sentence of something else; where that one ends cannot
    be told for sure, so each possible start counts.
    """
    where = text.casefold().rfind(subject.casefold())
    if not subject or where < 0:
        return
    filled = f"{text[:where]}{SUBJECT}{text[where + len(subject) :]}"
    starts = {0} | {match.end() for match in re.finditer(r"[.?!:;)\"'\]]*\s+", filled[:where])}
    for start in starts:
        yield normalised(filled[start:])


def evaluation_wordings(data: Path) -> dict[str, str]:
    """Every wording that some benchmark tests, normalised, with the file it was found in."""
    found: dict[str, str] = {}
    for name, field in ROWS:
        rows: Iterable[Mapping[str, Any]] = json.loads((data / name).read_text(encoding="utf-8"))
        for row in rows:
            for wording in wordings_of(row[field], row["subject"]):
                found.setdefault(wording, f"{name} ({field})")
    for path in sorted((data / "trex/patterns").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            head = json.loads(line)["pattern"].partition("[Y]")[0]
            if "[X]" in head:
                found.setdefault(normalised(head.replace("[X]", SUBJECT)), f"trex/patterns/{path.name}")
    for relation in builtin_catalogue().relations.values():
        for template in relation.evaluation_templates:
            found.setdefault(normalised(template), f"evaluation templates of {relation.name}")
    return found


def main(
    data: Annotated[Path, typer.Option(help="The folder of the benchmarks.")] = Path("../shared/data"),
) -> None:
    """List every template that is also an evaluation wording; exit with 1 if there is one."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    tested = evaluation_wordings(data)
    ours = [
        *((w.name, template) for w in load_wordings().values() for template in w.templates),
        *(
            (r.name, template)
            for r in builtin_catalogue().relations.values()
            for template in r.training_templates
        ),
    ]
    clashes = [(name, template) for name, template in ours if normalised(template) in tested]
    console.print(f"{len(ours)} templates checked against {len(tested)} evaluation wordings.")
    for name, template in clashes:
        console.print(f"COINCIDES  {name}: {template}  =  {tested[normalised(template)]}")
    raise typer.Exit(1 if clashes else 0)


if __name__ == "__main__":
    typer.run(main)
