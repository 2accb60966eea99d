"""POST /jobs/{id}/revert: a batch is taken out again, by a job that goes the way of every job."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from service import leases, models, versions
from service.ids import new_id
from service.tables import Version
from tests.support.api import Api, counts, job_row, problem, refused_version, serve
from tests.support.fake_work import REFUSED
from tests.support.records import add_job, edit_row
from tests.support.working import Bench, types

Fact = tuple[str, str]


@pytest.fixture
def api(bench: Bench, database_url: str, redis_url: str) -> Iterator[Api]:
    with serve(bench.database, database_url, redis_url) as running:
        yield running


def posted(bench: Bench, *facts: Fact, **fields: Any) -> str:
    """A batch that has gone all its way; its job's id."""
    with bench.database.transaction() as s:
        model = models.get(s, "toy")
        rows = [edit_row(subject, new_object) for subject, new_object in facts]
        job_id = add_job(s, model, rows, **fields).id
    bench.work()
    return job_id


def reverted(bench: Bench, api: Api, job_id: str, **body: Any) -> dict[str, Any]:
    """The job that reverts another, once it has ended."""
    response = api.http.post(f"/jobs/{job_id}/revert", json=body)
    assert response.status_code == 202, response.text
    bench.work()
    said: dict[str, Any] = api.http.get(response.headers["location"]).json()
    return said


def in_force(api: Api, version: str = "production") -> list[Fact]:
    facts = api.http.get(f"/models/toy/facts?version={version}").json()["data"]
    return [(fact["subject"], fact["new_object"]) for fact in facts]


def refused(api: Api, job_id: str, code: str) -> str:
    """What a refusal says, once it has shown to have stored nothing."""
    before = counts(api.database)
    detail: str = problem(api.http.post(f"/jobs/{job_id}/revert"), 409, code)["detail"]
    assert counts(api.database) == before
    return detail


def version_of(api: Api, job: dict[str, Any]) -> Version:
    with api.database.transaction() as s:
        return s.get_one(Version, job["candidate_version"])


# What becomes of it


def test_a_revert_is_a_job_that_builds_on_the_root_by_the_choices_that_made_production(
    bench: Bench, api: Api
) -> None:
    first = posted(bench, ("France", "Rome"))
    choices = {"method": {"name": "constrained_ftm"}, "blocks": [1], "gate": {"margin": 0.2}}
    posted(bench, ("Spain", "Oslo"), request=choices, seed=7)
    body = {"reason": "The source was wrong.", "metadata": {"ticket": "A-1"}}
    response = api.http.post(f"/jobs/{first}/revert", json=body)
    assert response.status_code == 202
    said = response.json()
    assert response.headers["location"] == f"/jobs/{said['id']}"
    assert (said["kind"], said["reverts"], said["status"], said["n_edits"]) == ("revert", first, "queued", 0)
    assert said["base_version"] == api.http.get("/models/toy").json()["root_version"]
    assert said["request"] == {**choices, "reason": "The source was wrong."}
    assert (said["seed"], said["metadata"], said["promotion"]) == (7, {"ticket": "A-1"}, "automatic")
    assert api.http.get(f"/jobs/{first}").json()["kind"] == "edit"


def test_the_batch_is_gone_from_the_ledger_and_all_others_stay(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"), ("Italy", "Bern"))
    posted(bench, ("Spain", "Oslo"))
    assert in_force(api) == [("France", "Rome"), ("Italy", "Bern"), ("Spain", "Oslo")]
    job = reverted(bench, api, first)
    assert (job["status"], job["promoted"], job["error"]) == ("succeeded", True, None)
    assert in_force(api) == in_force(api, job["candidate_version"]) == [("Spain", "Oslo")]
    version = version_of(api, job)
    assert (version.state, version.parent_id) == ("production", job["base_version"])
    assert version.manifest["reverted"] == [first]


def test_the_report_shows_what_remains_and_what_is_gone(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    second = posted(bench, ("Spain", "Oslo"))
    job = reverted(bench, api, first)
    body = api.http.get(f"/jobs/{job['id']}/report").json()
    assert (body["kind"], body["reverts"], body["verdict"]["decision"]) == ("revert", first, "pass")
    assert [(e["subject"], e["right_after"], e["restored"]) for e in body["edits"]] == [
        ("Spain", True, False)
    ]
    assert [
        (e["subject"], e["target"], {"before", "after", "gone"} <= e.keys()) for e in body["reverted"]
    ] == [("France", "Rome", True)]
    assert body["summary"]["edits"]["count"] == body["summary"]["reverted"]["count"] == 1
    assert [item["group"] for item in body["probes"]["items"]].count("earlier_edit") == 1
    assert body["compared_version"] == job_row(api.database, second).candidate_version_id


def test_events_and_history_tell_of_it(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    job = reverted(bench, api, first, reason="The source was wrong.")
    expected = ["created", "claimed", "reverting", "published", "claimed", "verdict", "promoted", "succeeded"]
    assert types(api.database, job["id"]) == expected
    move = api.http.get("/models/toy/history").json()["data"][0]
    assert (move["kind"], move["job"]) == ("promote", job["id"])
    assert first in move["reason"] and move["reason"].endswith("The source was wrong.")


def test_the_last_batch_reverted_leaves_a_version_with_no_edit_in_force(bench: Bench, api: Api) -> None:
    job = reverted(bench, api, posted(bench, ("France", "Rome")))
    assert (job["status"], job["promoted"]) == ("succeeded", True)
    assert in_force(api) == []
    body = api.http.get(f"/jobs/{job['id']}/report").json()
    assert body["edits"] == [] and body["summary"]["edits"]["efficacy_after"] is None
    assert [edit["subject"] for edit in body["reverted"]] == ["France"]


def test_a_revert_goes_through_the_gate_too(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    # This one's answers are wrong after every edit, so it only came in by force.
    second = posted(bench, (REFUSED, REFUSED))
    forced = job_row(api.database, second).candidate_version_id
    body = {"version": forced, "force": True, "reason": "For a test."}
    assert api.http.put("/models/toy/aliases/production", json=body).status_code == 200
    with api.database.transaction() as s:
        s.execute(text("update edits set new_object = :word where subject = :word"), {"word": REFUSED})
    job = reverted(bench, api, first)
    assert (job["status"], job["error"]["code"]) == ("failed", "regression_gate")
    assert in_force(api) == [("France", "Rome"), (REFUSED, REFUSED)]


def test_a_revert_may_wait_for_a_person(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    job = reverted(bench, api, first, promotion="manual")
    assert (job["status"], job["promoted"]) == ("succeeded", False)
    assert in_force(api) == [("France", "Rome")]
    body = {"version": job["candidate_version"]}
    assert api.http.put("/models/toy/aliases/production", json=body).status_code == 200
    assert in_force(api) == []
    refused(api, first, "already_reverted")


def test_a_revert_is_undone_by_a_rollback_and_may_then_be_made_again(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    reverted(bench, api, first)
    api.http.post("/models/toy/rollback")
    assert in_force(api) == [("France", "Rome")]
    assert reverted(bench, api, first)["status"] == "succeeded"
    assert in_force(api) == []


# What comes into force again


def test_what_the_batch_had_superseded_comes_into_force_again(bench: Bench, api: Api) -> None:
    posted(bench, ("France", "Rome"), ("Italy", "Bern"))
    second = posted(bench, ("France", "Oslo"), ("Spain", "Paris"))
    assert in_force(api) == [("Italy", "Bern"), ("France", "Oslo"), ("Spain", "Paris")]
    job = reverted(bench, api, second)
    assert in_force(api) == [("France", "Rome"), ("Italy", "Bern")]
    body = api.http.get(f"/jobs/{job['id']}/report").json()
    assert [(e["subject"], e["restored"]) for e in body["edits"]] == [("France", True), ("Italy", False)]
    assert [(e["subject"], e["target"]) for e in body["reverted"]] == [("France", "Oslo"), ("Spain", "Paris")]


def test_not_if_something_newer_is_in_force(bench: Bench, api: Api) -> None:
    posted(bench, ("France", "Rome"))
    second = posted(bench, ("France", "Oslo"), ("Italy", "Bern"))
    posted(bench, ("France", "Madrid"))
    reverted(bench, api, second)
    assert in_force(api) == [("France", "Madrid")]


def test_not_if_it_was_itself_reverted(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"), ("Italy", "Bern"))
    second = posted(bench, ("France", "Oslo"))
    reverted(bench, api, first)
    assert in_force(api) == [("France", "Oslo")]
    reverted(bench, api, second)
    assert in_force(api) == []


def test_behind_a_batch_that_was_reverted_what_that_one_had_superseded_comes_back(
    bench: Bench, api: Api
) -> None:
    posted(bench, ("France", "Rome"))
    second = posted(bench, ("France", "Oslo"), ("Italy", "Bern"))
    third = posted(bench, ("France", "Madrid"))
    reverted(bench, api, second)
    reverted(bench, api, third)
    assert in_force(api) == [("France", "Rome")]


def test_a_batch_after_a_revert_builds_on_it_and_remembers_what_is_out(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"), ("Italy", "Bern"))
    second = posted(bench, ("France", "Oslo"))
    reverted(bench, api, first)
    posted(bench, ("Spain", "Paris"))
    reverted(bench, api, second)
    assert in_force(api) == [("Spain", "Paris")]


# What is refused


def test_a_job_that_is_not_there_is_not_found(api: Api) -> None:
    problem(api.http.post(f"/jobs/{new_id('job')}/revert"), 404, "job_not_found")


def test_a_job_that_has_not_ended_is_not_reverted(bench: Bench, api: Api) -> None:
    with bench.database.transaction() as s:
        job_id = add_job(s, models.get(s, "toy")).id
    assert "queued" in refused(api, job_id, "job_not_ended")
    with bench.database.transaction() as s:
        assert leases.claim(s, "edit", "w", 60) is not None
    assert "running" in refused(api, job_id, "job_not_ended")


def test_a_job_whose_version_never_was_in_production_is_not_reverted(bench: Bench, api: Api) -> None:
    with bench.database.transaction() as s:
        model = models.get(s, "toy")
    by_gate = refused_version(bench.database, model)
    by_hand = posted(bench, ("France", "Rome"), promotion="manual")
    assert by_gate.job_id is not None
    for job_id in (by_gate.job_id, by_hand):
        refused(api, job_id, "never_promoted")


def test_what_is_reverted_already_is_not_reverted_again(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    job = reverted(bench, api, first)
    assert job["id"] in refused(api, first, "already_reverted")
    refused(api, job["id"], "job_is_a_revert")


def test_of_two_reverts_of_a_job_one_is_refused(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    job_id = api.http.post(f"/jobs/{first}/revert").json()["id"]
    assert job_id in refused(api, first, "revert_in_progress")


def test_a_batch_that_later_ones_superseded_wholly_is_not_reverted(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    posted(bench, ("France", "Oslo"))
    refused(api, first, "not_in_force")


def test_a_batch_that_was_rolled_back_is_not_reverted(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    api.http.post("/models/toy/rollback")
    refused(api, first, "not_in_force")


def test_a_revert_that_finds_nothing_when_its_turn_comes_fails_and_says_so(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    job_id = api.http.post(f"/jobs/{first}/revert").json()["id"]
    api.http.post("/models/toy/rollback")
    bench.work()
    job = api.http.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "nothing_to_revert")
    assert job["candidate_version"] is None


def test_a_revert_repeated_under_its_key_is_one_job(bench: Bench, api: Api) -> None:
    first = posted(bench, ("France", "Rome"))
    headers = {"Idempotency-Key": "k"}
    once, again = (api.http.post(f"/jobs/{first}/revert", headers=headers) for _ in range(2))
    assert (once.status_code, again.status_code) == (202, 202)
    assert once.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"


# What is superseded is settled when the job runs


def test_a_job_tells_anew_what_it_supersedes_when_production_moved_while_it_was_queued(
    bench: Bench, api: Api
) -> None:
    edit = {"subject": "France", "relation": "capital", "new_object": "Oslo"}
    with bench.database.transaction() as s:
        add_job(s, models.get(s, "toy"), [edit_row("France", "Rome")])
    said = api.http.post("/edits", json={"model": "toy", "edits": [edit]}).json()
    assert said["supersedes"] == []
    bench.work()
    job = api.http.get(f"/jobs/{said['id']}").json()
    assert [(e["old"], e["new"]) for e in job["supersedes"]] == [("Rome", "Oslo")]
    assert "supersedes" in types(bench.database, said["id"])
    report = api.http.get(f"/jobs/{said['id']}/report").json()
    assert report["supersedes"] == job["supersedes"]
    assert [(edit["kind"], edit["target"]) for edit in report["edits"]] == [("update", "Oslo")]


def test_a_ledger_holds_no_two_edits_of_one_fact(bench: Bench, api: Api) -> None:
    for city in ("Rome", "Oslo", "Bern"):
        posted(bench, ("France", city))
    assert in_force(api) == [("France", "Bern")]
    with bench.database.transaction() as s:
        production = versions.resolve(s, "toy")[1]
        assert production.manifest["reverted"] == []
