"""The main job, step by step: edit, watch, read the report, compare, roll back."""

import json
from importlib import resources

from rich.console import Console

from workers.demo import tables
from workers.demo.client import Api, Json
from workers.demo.progress import follow
from workers.demo.promise import Check, check_of_rollback, checks_of_report


class NotPromoted(Exception):
    """The job did not end in production; its report, if there is one, has been shown."""


def tell(api: Api, model: str, console: Console) -> list[Check]:
    """Run the job on `model`; production is at the root before and after.

    Raises:
        NotPromoted: the job failed, or the gate refused what it made.
        Problem: the API said no.
    """
    script = json.loads((resources.files("workers.demo") / "edits.json").read_text(encoding="utf-8"))
    root = _start_at_the_root(api, model, console)

    console.rule("1. Ten facts that the world has changed, posted to /edits")
    batch = {"model": model, "edits": script["edits"], "metadata": {"by": "make demo"}}
    job = api.post("/edits", batch)
    console.print(f"202 Accepted: {job['id']}")

    console.rule("2. Its progress, as it happens")
    follow(api.events(job["id"]), console)
    job = api.get(f"/jobs/{job['id']}")
    if job["status"] != "succeeded" and job["candidate_version"] is None:
        raise NotPromoted(f"{job['id']} is {job['status']}: {job['error']}")

    console.rule("3. The report: what changed, and what did not")
    report = api.get(f"/jobs/{job['id']}/report")
    for table in (tables.edits, tables.paraphrases, tables.gate, tables.flipped, tables.timings):
        console.print(table(report))
    if not job["promoted"]:
        raise NotPromoted(f"{job['id']} is {job['status']}: {job['error']}")

    console.rule("4. Both versions side by side")
    asked = [edit["prompt"] for edit in report["edits"]] + script["bystanders"]
    production, compared = api.compare(model, f"{model}@{root}", asked)
    console.print(tables.side_by_side(asked, "root", compared, "production", production))

    console.rule("5. Rolled back")
    asked += [paraphrase["prompt"] for edit in report["edits"] for paraphrase in edit["paraphrases"]]
    before = api.answers(f"{model}@{root}", asked)
    api.post(f"/models/{model}/rollback", {"reason": "The end of the demo."})
    back = api.answers(model, asked)
    count = len(report["edits"])
    console.print(
        tables.side_by_side(asked[:count], "root", before[:count], "production, rolled back", back[:count])
    )
    return [*checks_of_report(report), check_of_rollback(before, back)]


def _start_at_the_root(api: Api, model: str, console: Console) -> str:
    """The root's version. Production is moved there, should an earlier run have left it elsewhere."""
    known: Json = api.get(f"/models/{model}")
    root, production = str(known["root_version"]), str(known["production_version"])
    if production != root:
        api.post(f"/models/{model}/rollback", {"to": root, "reason": "The demo starts at the root."})
        console.print(f"Production was at {production}; it is at the root, {root}, again.")
    return root
