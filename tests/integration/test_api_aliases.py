"""Aliases, production among them, as the API makes and moves them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from service import aliases, versions
from service.ids import new_id
from service.tables import Model
from tests.support.api import (
    ALIASES,
    MINE,
    PRODUCTION,
    Api,
    api_without_redis,
    candidate_of,
    claimed,
    counts,
    pointers,
    problem,
    production_of,
    promoted_version,
    refused_version,
    state_of,
    wait_until_somebody_waits,
)
from tests.support.records import add_job

api = pytest.fixture(api_without_redis)


# Aliases


def test_an_alias_is_made_read_moved_and_deleted(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    made = api.http.put(MINE, json={"version": "root"})
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    assert (made.json()["version"], made.json()["generation"]) == (model.root_version_id, 1)
    assert api.http.get(MINE).json() == made.json()
    moved = api.http.put(MINE, json={"version": version.id})
    assert (moved.status_code, moved.headers["etag"], moved.json()["version"]) == (200, '"2"', version.id)
    read = api.http.get(MINE)
    assert (read.headers["etag"], read.json()) == ('"2"', moved.json())
    assert [a["name"] for a in api.http.get(ALIASES).json()["data"]] == ["mine", "production"]
    assert api.http.delete(MINE).status_code == 204
    problem(api.http.get(MINE), 404, "alias_not_found")
    assert state_of(api.database, version.id) == "production"


def test_an_alias_set_to_where_it_is_stays_at_its_generation(api: Api, model: Model) -> None:
    api.http.put(MINE, json={"version": "root"})
    again = api.http.put(MINE, json={"version": "root"})
    assert again.headers["etag"] == '"1"'
    assert len(api.http.get("/models/toy/history?alias=mine").json()["data"]) == 1


def test_only_what_is_new_is_answered_as_created(api: Api, model: Model) -> None:
    assert api.http.put(MINE, json={"version": "root"}).status_code == 201
    assert api.http.put(MINE, json={"version": "root"}).status_code == 200
    assert api.http.put(PRODUCTION, json={"version": "root"}).status_code == 200


def test_an_alias_made_anew_is_created_at_a_generation_that_no_earlier_one_had(
    api: Api, model: Model
) -> None:
    api.http.put(MINE, json={"version": "root"})
    api.http.delete(MINE)
    anew = api.http.put(MINE, json={"version": "root"})
    assert int(anew.headers["etag"].strip('"')) > 1
    assert anew.status_code == 201


def test_a_stale_etag_moves_nothing(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    etag = api.http.put(MINE, json={"version": "root"}).headers["etag"]
    moved = api.http.put(MINE, json={"version": version.id}, headers={"If-Match": etag})
    assert moved.status_code == 200
    before = counts(api.database)
    stale = api.http.put(MINE, json={"version": "root"}, headers={"If-Match": etag})
    said = problem(stale, 412, "precondition_failed")
    assert said["generation"] == 2
    problem(api.http.delete(MINE, headers={"If-Match": etag}), 412, "precondition_failed")
    problem(api.http.put(PRODUCTION, json={"version": "root"}, headers={"If-Match": '"9"'}), 412)
    assert api.http.get(MINE).json()["version"] == version.id
    assert counts(api.database) == before
    assert api.http.delete(MINE, headers={"If-Match": moved.headers["etag"]}).status_code == 204


def test_an_etag_of_what_is_not_there_makes_nothing(api: Api, model: Model) -> None:
    for etag in ('"1"', "*"):
        response = api.http.put(MINE, json={"version": "root"}, headers={"If-Match": etag})
        problem(response, 412, "precondition_failed")
    problem(api.http.get(MINE), 404)


def test_an_alias_that_is_to_be_new_is_not_overwritten(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    new = {"If-None-Match": "*"}
    assert api.http.put(MINE, json={"version": "root"}, headers=new).status_code == 201
    again = api.http.put(MINE, json={"version": version.id}, headers=new)
    problem(again, 412, "precondition_failed")
    assert api.http.get(MINE).json()["version"] == model.root_version_id


def test_two_who_make_the_same_alias_in_one_moment_do_not_break_it(api: Api, model: Model) -> None:
    with ThreadPoolExecutor(1) as pool:
        with api.database.transaction() as s:
            aliases.create(s, model, "mine", versions.get(s, model, "root"), "other", None)
            late = pool.submit(api.http.put, MINE, json={"version": "root"}, headers={"If-None-Match": "*"})
            wait_until_somebody_waits(api.database)
        problem(late.result(), 412, "precondition_failed")
    assert api.http.get(MINE).json()["generation"] == 1


@pytest.mark.parametrize("name", ["root", f"ver_{'0' * 32}"])
def test_what_names_a_version_is_no_name_for_an_alias(api: Api, model: Model, name: str) -> None:
    before = counts(api.database)
    problem(api.http.put(f"{ALIASES}/{name}", json={"version": "root"}), 422, "alias_reserved")
    assert counts(api.database) == before


@pytest.mark.parametrize("name", ["a b", "a@b", "-a", "\u00e9", "a" * 101, "a%0a"])
def test_an_alias_has_a_plain_name(api: Api, model: Model, name: str) -> None:
    before = counts(api.database)
    said = problem(api.http.put(f"{ALIASES}/{name}", json={"version": "root"}), 422, "invalid_request")
    assert said["error"]["param"] == "alias"
    assert counts(api.database) == before


def test_an_alias_of_what_is_not_there_is_not_made(api: Api, model: Model) -> None:
    before = counts(api.database)
    for version in (new_id("ver"), "production", "x"):
        problem(api.http.put(MINE, json={"version": version}), 404, "version_not_found")
    problem(api.http.put("/models/toi/aliases/mine", json={"version": "root"}), 404, "model_not_found")
    problem(api.http.delete(MINE), 404, "alias_not_found")
    assert counts(api.database) == before


def test_production_is_always_there(api: Api, model: Model) -> None:
    problem(api.http.delete(PRODUCTION), 409, "alias_protected")
    assert api.http.get(PRODUCTION).json()["version"] == model.root_version_id


# Production


def test_moving_production_by_hand_moves_both_states(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    assert api.http.put(PRODUCTION, json={"version": "root", "reason": "To compare."}).status_code == 200
    assert model.root_version_id is not None
    assert state_of(api.database, version.id) == "superseded"
    assert state_of(api.database, model.root_version_id) == "production"
    move = api.http.get("/models/toy/history?alias=production&limit=1").json()["data"][0]
    assert (move["kind"], move["from_version"], move["to_version"], move["reason"]) == (
        "set",
        version.id,
        model.root_version_id,
        "To compare.",
    )
    assert move["actor"].startswith("key_")


def test_a_version_that_passed_no_gate_is_not_put_in_production(api: Api, model: Model) -> None:
    refused = refused_version(api.database, model)
    with api.database.transaction() as s:
        add_job(s, model)
    candidate = candidate_of(api.database, claimed(api.database), "c" * 64)
    before = counts(api.database)
    for version in (refused, candidate):
        problem(api.http.put(PRODUCTION, json={"version": version.id}), 409, "version_not_passed")
        response = api.http.post("/models/toy/rollback", json={"to": version.id})
        problem(response, 409, "version_not_passed")
    assert production_of(api.database, model) == model.root_version_id
    assert counts(api.database) == before


def test_forcing_a_refused_version_needs_a_reason(api: Api, model: Model) -> None:
    version = refused_version(api.database, model)
    response = api.http.put(PRODUCTION, json={"version": version.id, "force": True})
    assert pointers(problem(response, 422)) == ["/reason"]
    assert production_of(api.database, model) == model.root_version_id


def test_forcing_a_refused_version_is_written_into_history(api: Api, model: Model) -> None:
    version = refused_version(api.database, model)
    body = {"version": version.id, "force": True, "reason": "The probes were wrong."}
    assert api.http.put(PRODUCTION, json=body).status_code == 200
    assert production_of(api.database, model) == version.id
    assert state_of(api.database, version.id) == "production"
    move = api.http.get("/models/toy/history").json()["data"][0]
    assert (move["to_version"], move["reason"]) == (version.id, "The probes were wrong.")
    assert move["actor"].startswith("key_")


def test_no_force_puts_damaged_bytes_in_production(api: Api, model: Model) -> None:
    version = refused_version(api.database, model)
    with api.database.transaction() as s:
        versions.quarantine(s, version.id)
    body = {"version": version.id, "force": True, "reason": "I insist."}
    problem(api.http.put(PRODUCTION, json=body), 409, "version_quarantined")
    assert production_of(api.database, model) == model.root_version_id


def test_an_alias_of_ones_own_may_point_at_a_refused_version(api: Api, model: Model) -> None:
    version = refused_version(api.database, model)
    assert api.http.put(MINE, json={"version": version.id}).status_code == 201
    assert state_of(api.database, version.id) == "refused"
