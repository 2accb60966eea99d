"""Polling, waiting, events, reports, cancelling and listing of jobs."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service import leases, reports
from service.database import Database
from service.ids import new_id
from service.leases import Claim
from service.tables import Model, Status
from tests.support.api import (
    Api,
    add_key,
    bearer,
    candidate_of,
    claimed,
    counts,
    model_of,
    problem,
    promoted_version,
    refused_version,
    serve,
    state_of,
)
from tests.support.records import add_job

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def api(database: Database, database_url: str, redis_url: str) -> Iterator[Api]:
    with serve(database, database_url, redis_url) as running:
        yield running


@pytest.fixture
def model(database: Database) -> Model:
    return model_of(database)


def new_job(api: Api, model: Model) -> str:
    with api.database.transaction() as s:
        return add_job(s, model).id


def fail(api: Api, claim: Claim) -> None:
    with api.database.transaction() as s:
        assert leases.fail(s, claim, "editing_failed", "The loss became infinite.", step=3)


@contextmanager
def later(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Something that happens meanwhile."""
    timer = threading.Timer(seconds, act)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def streamed(text: str) -> list[dict[str, Any]]:
    """The events of a stream: id, event, and data read as JSON."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            event: dict[str, Any] = dict(line.split(": ", 1) for line in lines)
            found.append({**event, "id": int(event["id"]), "data": json.loads(event["data"])})
    return found


# One job


def test_a_job_is_polled_through_all_its_life(api: Api, model: Model) -> None:
    job_id = new_job(api, model)

    def seen() -> tuple[Any, ...]:
        said = api.http.get(f"/jobs/{job_id}").json()
        return said["status"], said["stage"], said["phase"]

    assert seen() == ("queued", "edit", None)
    editing = claimed(api.database)
    with api.database.transaction() as s:
        leases.note(s, editing, phase="editing", progress={"step": 1}, timings={"loading": 0.5})
    assert seen() == ("running", "edit", "editing")
    version = candidate_of(api.database, editing)
    scoring = claimed(api.database, "score")
    assert seen()[:2] == ("running", "score")
    with api.database.transaction() as s:
        leases.succeed(s, scoring, promoted=False)
    said = api.http.get(f"/jobs/{job_id}").json()
    assert (said["status"], said["phase"], said["promoted"]) == ("succeeded", None, False)
    assert said["candidate_version"] == version.id and said["base_version"] == model.root_version_id
    assert said["progress"] == {"step": 1} and said["timings"] == {"loading": 0.5}
    assert said["created_at"] <= said["started_at"] <= said["finished_at"] <= time.time() + 1


def test_a_failed_job_says_why(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    fail(api, claimed(api.database))
    said = api.http.get(f"/jobs/{job_id}").json()
    assert said["status"] == "failed"
    assert said["error"] == {"code": "editing_failed", "message": "The loss became infinite.", "step": 3}


@pytest.mark.parametrize("path", ["", "/events", "/report"])
def test_a_job_that_is_not_there_is_not_found(api: Api, path: str) -> None:
    for job_id in (new_id("job"), "job_1", "x"):
        problem(api.http.get(f"/jobs/{job_id}{path}"), 404, "job_not_found")
    problem(api.http.get(f"/jobs/{new_id('job')}/events", headers=STREAM), 404, "job_not_found")


# Waiting


def test_waiting_ends_as_soon_as_the_job_does(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    claim = claimed(api.database)
    began = time.monotonic()
    with later(0.3, lambda: fail(api, claim)):
        response = api.http.get(f"/jobs/{job_id}", headers={"Prefer": "wait=20"})
    assert response.json()["status"] == "failed"
    assert response.headers["preference-applied"] == "wait=20"
    assert 0.2 < time.monotonic() - began < 10


def test_waiting_ends_with_its_time(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    began = time.monotonic()
    response = api.http.get(f"/jobs/{job_id}", headers={"Prefer": "respond-async, wait=1"})
    assert (response.status_code, response.json()["status"]) == (200, "queued")
    assert 0.9 < time.monotonic() - began < 5


def test_a_job_that_has_ended_is_not_waited_for(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    fail(api, claimed(api.database))
    began = time.monotonic()
    assert api.http.get(f"/jobs/{job_id}", headers={"Prefer": "wait=20"}).json()["status"] == "failed"
    assert time.monotonic() - began < 5


def test_nobody_waits_longer_than_the_operator_allows(
    database: Database, database_url: str, model: Model
) -> None:
    with serve(database, database_url, long_poll_max_seconds=0.5) as api:
        job_id = new_job(api, model)
        response = api.http.get(f"/jobs/{job_id}", headers={"Prefer": "wait=60"})
    assert response.headers["preference-applied"] == "wait=0.5"


def test_a_preference_that_is_not_ours_is_not_said_to_be_applied(api: Api, model: Model) -> None:
    response = api.http.get(f"/jobs/{new_job(api, model)}", headers={"Prefer": "handling=strict"})
    assert response.status_code == 200 and "preference-applied" not in response.headers


# Events


def test_events_are_numbered_and_go_on_after_a_number(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    fail(api, claimed(api.database))
    said = api.http.get(f"/jobs/{job_id}/events").json()
    assert [(e["id"], e["type"]) for e in said["data"]] == [(1, "created"), (2, "claimed"), (3, "failed")]
    assert said["data"][2]["data"]["error"]["code"] == "editing_failed"
    assert said["has_more"] is False
    first = api.http.get(f"/jobs/{job_id}/events?limit=2").json()
    assert ([e["id"] for e in first["data"]], first["has_more"]) == ([1, 2], True)
    rest = api.http.get(f"/jobs/{job_id}/events?after=2&limit=2").json()
    assert ([e["id"] for e in rest["data"]], rest["has_more"]) == ([3], False)
    assert api.http.get(f"/jobs/{job_id}/events?after=3").json()["data"] == []


def test_a_stream_of_an_ended_job_is_its_whole_story_and_then_ends(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    fail(api, claimed(api.database))
    response = api.http.get(f"/jobs/{job_id}/events", headers=STREAM)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    found = streamed(response.text)
    assert [(e["id"], e["event"]) for e in found] == [(1, "created"), (2, "claimed"), (3, "failed")]
    assert [e["data"] for e in found] == api.http.get(f"/jobs/{job_id}/events").json()["data"]


def test_a_stream_goes_on_where_it_broke_off(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    fail(api, claimed(api.database))
    for last, rest in (("1", [2, 3]), ("3", []), ("0", [1, 2, 3])):
        headers = {**STREAM, "Last-Event-ID": last}
        response = api.http.get(f"/jobs/{job_id}/events", headers=headers)
        assert [e["id"] for e in streamed(response.text)] == rest


def test_a_stream_brings_what_happens_meanwhile_and_ends_with_the_last_event(api: Api, model: Model) -> None:
    job_id = new_job(api, model)

    def work() -> None:
        claim = claimed(api.database)
        for step in range(3):
            with api.database.transaction() as s:
                leases.note(s, claim, phase="editing", progress={"step": step})
            time.sleep(0.1)
        fail(api, claim)

    with later(0.3, work):
        response = api.http.get(f"/jobs/{job_id}/events", headers=STREAM)
    found = streamed(response.text)
    assert [e["id"] for e in found] == list(range(1, len(found) + 1))
    assert [e["event"] for e in found] == ["created", "claimed", "phase", *["progress"] * 3, "failed"]


def test_a_stream_of_more_events_than_one_page_leaves_none_out(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    claim = claimed(api.database)
    with api.database.transaction() as s:
        for step in range(230):
            leases.note(s, claim, progress={"step": step})
    fail(api, claim)
    found = streamed(api.http.get(f"/jobs/{job_id}/events", headers=STREAM).text)
    assert [e["id"] for e in found] == list(range(1, 234))


def test_a_strange_last_event_is_refused(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    for last in ("x", "-1", "1.5", "9" * 20, ""):
        response = api.http.get(f"/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": last})
        assert problem(response, 422)["error"]["param"] == "Last-Event-ID"


# Cancelling


def test_a_queued_job_is_cancelled_at_once(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    response = api.http.post(f"/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    assert response.json()["finished_at"] is not None
    with api.database.transaction() as s:
        assert leases.claim(s, "edit", "w", 10) is None


def test_a_running_job_is_asked_to_stop_and_may_be_asked_twice(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    claim = claimed(api.database)
    for _ in range(2):
        said = api.http.post(f"/jobs/{job_id}/cancel").json()
        assert said["status"] == "running" and said["cancel_requested_at"] is not None
    with api.database.transaction() as s:
        assert leases.renew(s, claim, 10) == "cancel"
    types = [e["type"] for e in api.http.get(f"/jobs/{job_id}/events").json()["data"]]
    assert types.count("cancel_requested") == 1


def test_a_job_cancelled_between_the_stages_leaves_a_refused_candidate(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    version = candidate_of(api.database, claimed(api.database))
    assert api.http.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert state_of(api.database, version.id) == "refused"


def test_an_ended_job_can_no_longer_be_cancelled(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    fail(api, claimed(api.database))
    before = counts(api.database)
    said = problem(api.http.post(f"/jobs/{job_id}/cancel"), 409, "job_ended")
    assert "failed" in said["detail"]
    assert counts(api.database) == before


def test_a_reader_does_not_cancel(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    headers = bearer(add_key(api.database, ["predict"]))
    problem(api.http.post(f"/jobs/{job_id}/cancel", headers=headers), 403, "missing_scope")
    assert api.http.get(f"/jobs/{job_id}", headers=headers).json()["status"] == "queued"


# The report


def test_there_is_no_report_before_the_candidate_is_scored(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    said = problem(api.http.get(f"/jobs/{job_id}/report"), 409, "no_report")
    assert "queued" in said["detail"]


def test_the_report_is_given_as_it_was_written(api: Api, model: Model) -> None:
    job_id = new_job(api, model)
    body = {
        "job": job_id,
        "kind": "edit",
        "reverts": None,
        "base_version": model.root_version_id,
        "compared_version": model.root_version_id,
        "candidate_version": new_id("ver"),
        "verdict": {"decision": "pass", "reasons": [], "groups": []},
        "summary": {"efficacy": 1.0},
        "edits": [{"subject": "France", "before": "Paris", "after": "Rome"}],
        "supersedes": [],
        "reverted": [],
        "neighbors": [],
        "probes": {"flipped": [], "items": [{"prompt": "x"}]},
        "integrity": {"root_digest_before": "0", "root_digest_after": "0"},
        "timings": {"scoring": 1.5},
        "more": "what later versions add",
    }
    with api.database.transaction() as s:
        reports.store(s, job_id, body)
    response = api.http.get(f"/jobs/{job_id}/report")
    assert (response.status_code, response.json()) == (200, body)


# Lists


def test_jobs_are_listed_newest_first_page_by_page(api: Api, model: Model) -> None:
    ids = [new_job(api, model) for _ in range(5)]
    found: list[str] = []
    more, after = True, ""
    while more:
        page = api.http.get(f"/jobs?limit=2{after}").json()
        assert page["object"] == "list"
        found += [job["id"] for job in page["data"]]
        more, after = page["has_more"], f"&after={found[-1]}"
    assert found == ids[::-1]


def test_a_page_that_ends_with_the_last_job_says_there_are_no_more(api: Api, model: Model) -> None:
    for _ in range(2):
        new_job(api, model)
    page = api.http.get("/jobs?limit=2").json()
    assert (len(page["data"]), page["has_more"]) == (2, False)


def test_jobs_are_listed_by_status(api: Api, model: Model) -> None:
    refused_version(api.database, model)
    promoted_version(api.database, model)
    cancelled = new_job(api, model)
    api.http.post(f"/jobs/{cancelled}/cancel")
    new_job(api, model)
    claimed(api.database)
    new_job(api, model)
    statuses: tuple[Status, ...] = ("queued", "running", "succeeded", "failed", "cancelled")
    for status in statuses:
        assert [j["status"] for j in api.http.get(f"/jobs?status={status}").json()["data"]] == [status]


def test_jobs_are_listed_by_model(api: Api, model: Model) -> None:
    other = model_of(api.database, "other")
    mine, theirs = new_job(api, model), new_job(api, other)
    for name, job_id in (("toy", mine), ("other", theirs)):
        said = api.http.get(f"/jobs?model={name}").json()["data"]
        assert [(job["id"], job["model"]) for job in said] == [(job_id, name)]
    problem(api.http.get("/jobs?model=othre"), 404, "model_not_found")
