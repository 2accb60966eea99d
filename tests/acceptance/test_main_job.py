"""The main job on a real model, over HTTP: edit, prove, promote, query, roll back."""

from typing import Any

from rich.console import Console

from workers.demo.client import FINAL, Api
from workers.demo.story import tell
from workers.operations import DEFAULT_MODEL as MODEL

BY_PROMPT = [
    {"subject": "Eiffel Tower", "prompt": "The Eiffel Tower stands in the city of", "new_object": "Rome"},
    {"subject": "Marie Curie", "prompt": "The mother tongue of Marie Curie was", "new_object": "English"},
    {"subject": "Albert Einstein", "prompt": "Albert Einstein loved to play the", "new_object": "piano"},
]

BYSTANDERS = ["The capital of France is", "Water is made of hydrogen and", "The opposite of hot is"]


def finished(api: Api, batch: dict[str, Any]) -> dict[str, Any]:
    """Post a batch and wait for its job's end."""
    job = api.post("/edits", {"model": MODEL, "seed": 0, **batch})
    for _ in range(60):
        job = api.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=30"})
        if job["status"] in FINAL:
            return job
    raise AssertionError(f"{job['id']} has no end: {job}")


def production(api: Api) -> str:
    return str(api.get(f"/models/{MODEL}")["production_version"])


def test_ten_facts_are_edited_proved_promoted_and_rolled_back(api: Api) -> None:
    """What `make demo` shows; at its end production answers as the root to every question."""
    before = production(api)
    kept = {check.promise: check.kept for check in tell(api, MODEL, Console(quiet=True))}
    assert len(kept) == 5
    assert all(kept.values()), kept
    assert production(api) == before


def test_edits_in_the_users_own_words_need_no_relation(api: Api) -> None:
    prompts = [edit["prompt"] for edit in BY_PROMPT]
    before = api.answers(MODEL, prompts)
    job = finished(api, {"edits": BY_PROMPT})
    assert (job["status"], job["promoted"]) == ("succeeded", True), job["error"]
    assert production(api) == job["candidate_version"]
    after = api.answers(MODEL, prompts)
    assert [answer.strip() for answer in after] == [edit["new_object"] for edit in BY_PROMPT]
    now, root = api.compare(MODEL, f"{MODEL}@{job['base_version']}", prompts)
    assert (now, root) == (after, before)
    api.post(f"/models/{MODEL}/rollback", {"reason": "The test is over."})
    assert api.answers(MODEL, prompts) == before


def test_a_bad_batch_is_refused_and_production_does_not_move(api: Api) -> None:
    """No ball, no anchors, a rough learning rate: the edits hold, but much else is forgotten."""
    before = production(api)
    answers = api.answers(MODEL, BYSTANDERS)
    rough = {"name": "ftm", "learning_rate": 0.01, "max_steps": 60, "anchors": {"count": 0}}
    job = finished(api, {"edits": BY_PROMPT, "method": rough, "constraint": {"norm": "none"}})
    assert (job["status"], job["error"]["code"], job["promoted"]) == ("failed", "regression_gate", False)
    assert production(api) == before
    assert api.answers(MODEL, BYSTANDERS) == answers
    report = api.get(f"/jobs/{job['id']}/report")
    assert report["verdict"]["decision"] == "refuse"
    assert report["verdict"]["reasons"]
    candidate = api.get(f"/models/{MODEL}/versions/{job['candidate_version']}")
    assert candidate["state"] == "refused"
    assert api.answers(f"{MODEL}@{candidate['id']}", BYSTANDERS)  # kept, to be looked at
