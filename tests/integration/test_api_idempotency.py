"""A POST may be repeated under its Idempotency-Key: it is carried out once."""

import threading
from typing import Any

import httpx2
from sqlalchemy import func, select

from service.database import Database
from service.tables import ApiKey, Model
from tests.support.api import Api, add_key, bearer, counts, model_of, problem, promoted_version, serve

FRANCE = {"subject": "France", "relation": "capital", "new_object": "Rome"}
EDITS = {"model": "toy", "edits": [FRANCE]}
OTHER = {"model": "toy", "edits": [{**FRANCE, "new_object": "Oslo"}]}


def post(
    api: Api, body: dict[str, Any], key: str = "k", path: str = "/edits", **headers: str
) -> httpx2.Response:
    return api.http.post(path, json=body, headers={"Idempotency-Key": key, **headers})


def test_the_same_request_gets_the_first_answer_again_and_makes_one_job(api: Api) -> None:
    first, second = post(api, EDITS), post(api, EDITS)
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json() == first.json()
    assert second.headers["location"] == first.headers["location"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    stored = counts(api.database)
    assert (stored["jobs"], stored["edits"], stored["idempotency_keys"]) == (1, 1, 1)


def test_the_first_answer_is_given_even_when_the_job_has_gone_on(api: Api) -> None:
    first = post(api, EDITS).json()
    api.http.post(f"/jobs/{first['id']}/cancel")
    assert post(api, EDITS).json() == first


def test_another_body_under_the_same_key_is_refused(api: Api) -> None:
    post(api, EDITS)
    said = problem(post(api, OTHER), 422, "idempotency_key_reused")
    assert said["error"]["param"] == said["errors"][0]["param"] == "Idempotency-Key"
    assert counts(api.database)["jobs"] == 1


def test_another_call_under_the_same_key_is_refused(api: Api) -> None:
    job = post(api, EDITS).json()["id"]
    problem(post(api, EDITS, path=f"/jobs/{job}/cancel"), 422, "idempotency_key_reused")
    assert api.http.get(f"/jobs/{job}").json()["status"] == "queued"


def test_two_keys_are_two_jobs_of_the_same_body(api: Api) -> None:
    assert post(api, EDITS, "one").json()["id"] != post(api, EDITS, "two").json()["id"]


def test_without_a_key_each_request_is_a_job(api: Api) -> None:
    api.http.post("/edits", json=EDITS)
    api.http.post("/edits", json=EDITS)
    stored = counts(api.database)
    assert (stored["jobs"], stored["idempotency_keys"]) == (2, 0)


def test_while_the_first_still_runs_the_second_is_told_to_come_back(api: Api) -> None:
    with api.database.transaction() as s:
        actor = s.scalars(select(ApiKey.id)).one()
        s.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{actor}\nk", 0))))
        response = post(api, EDITS)
        problem(response, 409, "idempotency_in_progress")
        assert int(response.headers["retry-after"]) > 0
        assert counts(api.database)["jobs"] == 0
    assert post(api, EDITS).status_code == 202


def test_of_many_at_once_one_is_carried_out(api: Api) -> None:
    responses: list[httpx2.Response] = []
    threads = [threading.Thread(target=lambda: responses.append(post(api, EDITS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [r for r in responses if r.status_code == 202]
    assert {r.status_code for r in responses} <= {202, 409}
    assert len({r.json()["id"] for r in done}) == 1
    assert [r.headers.get("idempotent-replayed") for r in done].count(None) == 1
    assert counts(api.database)["jobs"] == 1


def test_two_people_may_use_the_same_key(api: Api) -> None:
    first = post(api, EDITS)
    second = post(api, OTHER, **bearer(add_key(api.database, ["edit"])))
    assert second.status_code == 202
    assert second.json()["id"] != first.json()["id"]
    assert "idempotent-replayed" not in second.headers


def test_a_refusal_leaves_the_key_free(api: Api) -> None:
    problem(post(api, {"model": "toy", "edits": [FRANCE, FRANCE]}), 422, "duplicate_edit")
    problem(post(api, {"model": "toi", "edits": [FRANCE]}), 404)
    assert counts(api.database)["idempotency_keys"] == 0
    response = post(api, EDITS)
    assert response.status_code == 202 and "idempotent-replayed" not in response.headers


def test_a_full_queue_leaves_the_key_free(database: Database, database_url: str, redis_url: str) -> None:
    model_of(database)
    with serve(database, database_url, redis_url, max_queued_jobs=1) as api:
        first = post(api, EDITS, "one").json()["id"]
        problem(post(api, EDITS, "two"), 429)
        api.http.post(f"/jobs/{first}/cancel")
        assert post(api, EDITS, "two").status_code == 202


def test_a_dry_run_takes_no_key(api: Api) -> None:
    assert post(api, EDITS, path="/edits?dry_run=true").status_code == 200
    assert counts(api.database)["idempotency_keys"] == 0


def test_a_cancel_is_repeated_as_it_was(api: Api) -> None:
    job = api.http.post("/edits", json=EDITS).json()["id"]
    headers = {"Idempotency-Key": "k"}
    first = api.http.post(f"/jobs/{job}/cancel", headers=headers)
    second = api.http.post(f"/jobs/{job}/cancel", headers=headers)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"


def test_a_repeated_rollback_goes_back_once(api: Api) -> None:
    with api.database.transaction() as s:
        model = s.scalars(select(Model)).one()
    first, _ = promoted_version(api.database, model), promoted_version(api.database, model, "c" * 64)
    said = [post(api, {}, path="/models/toy/rollback") for _ in range(3)]
    assert [r.status_code for r in said] == [200, 200, 200]
    assert {r.json()["production_version"] for r in said} == {first.id}
    kinds = [move["kind"] for move in api.http.get("/models/toy/history").json()["data"]]
    assert kinds.count("rollback") == 1


def test_relations_and_probes_are_added_once(api: Api) -> None:
    relation = {"name": "mascot", "training_templates": ["The mascot of {subject} is a"]}
    probes = {"model": "toy", "probes": [{"prompt": "Water boils at", "object": "100"}]}
    for path, body, key in (("/relations", relation, "r"), ("/probes", probes, "p")):
        first, second = post(api, body, key, path), post(api, body, key, path)
        assert (first.status_code, second.status_code) == (201, 201)
        assert second.json() == first.json()
        assert second.headers.get("location") == first.headers.get("location")
    stored = counts(api.database)
    assert (stored["relations"], stored["probes"]) == (1, 1)
