"""CounterFact edits given by prompt, over HTTP: `python -m benchmarks.counterfact --help`.

Posts the first rows of ../shared/data as one batch to a running stack, waits for the job, and asks
both versions, through /predict, what the edits were never trained on: the rows' paraphrases, their
locality prompts, and prompts of other rows. Rolls production back at the end.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from factedit.answers import clause, exactly
from workers.demo.client import FINAL, Api, Json

DATA = Path(__file__).parents[2] / "shared" / "data" / "counterfact" / "counterfact.json"
NEW_TOKENS = 20
CHUNK = 50


def batch_of(rows: Sequence[Json], model: str) -> Json:
    """The body of POST /edits; nothing that is used to evaluate is in it."""
    edits = [{"subject": r["subject"], "prompt": r["prompt"], "new_object": r["target_new"]} for r in rows]
    return {"model": model, "edits": edits}


def ask(api: Api, model: str, other: str, prompts: Sequence[str]) -> Iterator[tuple[Json, Json]]:
    """(answer of `model`, answer of `other`) for each prompt."""
    for start in range(0, len(prompts), CHUNK):
        part = list(prompts[start : start + CHUNK])
        body: dict[str, Any] = {"model": model, "compare_to": other, "prompts": part}
        found = api.post("/predict", body | {"max_tokens": NEW_TOKENS})
        yield from zip(found["answers"], found["compared"]["answers"], strict=True)


def share(hits: Sequence[bool]) -> str:
    return f"{sum(hits)} of {len(hits)} ({sum(hits) / max(1, len(hits)):.1%})"


def holds(answer: Json, target: str) -> bool:
    """Normalised exact match of the whole answer, ended by the model itself."""
    return answer["finish_reason"] == "stop" and exactly(answer["text"], target)


def first_word(answer: Json) -> list[str]:
    return str(answer["text"]).split()[:1]


def run(
    key: Annotated[str, typer.Option(envvar="FACTEDIT_API_KEY", help="A key with scope admin.")],
    count: Annotated[int, typer.Option(help="Edits in the batch.")] = 10,
    others: Annotated[int, typer.Option(help="Prompts of other rows that must stay as they are.")] = 200,
    model: Annotated[str, typer.Option(help="A registered model.")] = "smollm2",
    url: Annotated[str, typer.Option(envvar="FACTEDIT_URL")] = "http://127.0.0.1:8000",
    data: Annotated[Path, typer.Option(help="CounterFact as JSON.")] = DATA,
) -> None:
    """Edit, measure, roll back."""
    console = Console()
    loaded = json.loads(data.read_text(encoding="utf-8"))
    rows, rest = loaded[:count], loaded[count : count + others]
    with Api(url, key) as api:
        job = api.post("/edits", batch_of(rows, model))
        while job["status"] not in FINAL:
            job = api.get(f"/jobs/{job['id']}", {"Prefer": "wait=30"})
        console.print(f"{job['id']}: {job['status']} {job['error'] or ''}")
        if job["candidate_version"] is None:
            raise typer.Exit(1)
        report = api.get(f"/jobs/{job['id']}/report")
        edited, root = f"{model}@{job['candidate_version']}", f"{model}@root"
        asked = list(ask(api, edited, root, [row["rephrase_prompt"] for row in rows]))
        paraphrase = [holds(new, row["target_new"]) for (new, _), row in zip(asked, rows, strict=True)]
        near = list(ask(api, edited, root, [row["locality_prompt"] for row in rows]))
        far = list(ask(api, edited, root, [row["prompt"] for row in rest]))
        console.print(_table(report, paraphrase, near, far))
        console.print("timings, seconds: ", report["timings"])
        if job["promoted"]:
            api.post(f"/models/{model}/rollback", {"to": "root", "reason": "The benchmark is over."})
            prompts = [row["prompt"] for row in rows]
            back = [a["text"] == b["text"] for a, b in ask(api, model, root, prompts)]
            console.print(f"after rolling back, answers equal to the root's: {share(back)}")


def _table(
    report: Json, paraphrase: list[bool], near: list[tuple[Json, Json]], far: list[tuple[Json, Json]]
) -> Table:
    probes, edits = report["summary"]["probes"], report["edits"]
    table = Table("measure", "found", title=f"{len(edits)} CounterFact edits by prompt")
    known = f"{probes['still_right']} of {probes['known_before']} ({probes['share_still_right']:.1%})"
    rows = {
        "efficacy (free generation, whole answer)": share([edit["right_after"] for edit in edits]),
        "efficacy, teacher-forced": share([edit["teacher_forced"] for edit in edits]),
        "paraphrase (never trained on)": share(paraphrase),
        "locality prompts, first word unchanged": share([first_word(a) == first_word(b) for a, b in near]),
        "other prompts, first word unchanged": share([first_word(a) == first_word(b) for a, b in far]),
        "other prompts, first clause unchanged": share(
            [clause(a["text"]) == clause(b["text"]) for a, b in far]
        ),
        "known probes still right": known,
        "gate": report["verdict"]["decision"],
    }
    for name, found in rows.items():
        table.add_row(name, found)
    return table


if __name__ == "__main__":
    typer.run(run)
