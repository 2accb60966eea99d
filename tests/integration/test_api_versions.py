"""Versions, aliases, rollback, history and the ledger, as the API shows and moves them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from service import aliases, versions
from service.database import Database
from service.ids import new_id
from service.tables import Model
from tests.support.api import (
    NOWHERE,
    Api,
    add_key,
    bearer,
    candidate_of,
    claimed,
    counts,
    model_of,
    pointers,
    problem,
    production_of,
    promoted_version,
    refused_version,
    serve,
    state_of,
    wait_until_somebody_waits,
)
from tests.support.records import add_job, edit_row

ALIASES = "/models/toy/aliases"
PRODUCTION = f"{ALIASES}/production"
MINE = f"{ALIASES}/mine"


@pytest.fixture
def api(database: Database, database_url: str) -> Iterator[Api]:
    # Nothing here needs Redis, so there is none.
    with serve(database, database_url, NOWHERE) as running:
        yield running


@pytest.fixture
def model(database: Database) -> Model:
    return model_of(database)


# Models and versions


def test_a_model_tells_its_root_and_what_is_in_production(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    said = api.http.get("/models/toy").json()
    assert (said["id"], said["root_version"], said["production_version"]) == (
        model.id,
        model.root_version_id,
        version.id,
    )
    assert api.http.get("/models").json()["data"] == [said]
    problem(api.http.get("/models/toi"), 404, "model_not_found")


def test_no_answer_names_a_path_of_the_operators(api: Api, model: Model) -> None:
    with api.database.transaction() as s:
        s.merge(model).source = "folder:/srv/secret/weights"
    assert "secret" not in api.http.get("/models/toy").text


def test_models_are_listed_page_by_page(api: Api, model: Model) -> None:
    model_of(api.database, "other")
    first = api.http.get("/models?limit=1").json()
    rest = api.http.get(f"/models?limit=1&after={first['data'][0]['id']}").json()
    assert [m["name"] for m in (*first["data"], *rest["data"])] == ["toy", "other"]
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_versions_are_listed_newest_first_with_where_they_come_from(api: Api, model: Model) -> None:
    first = promoted_version(api.database, model, "a" * 64)
    second = promoted_version(api.database, model, "b" * 64)
    said = api.http.get("/models/toy/versions").json()
    assert [(v["id"], v["kind"], v["state"], v["parent"]) for v in said["data"]] == [
        (second.id, "edit", "production", first.id),
        (first.id, "edit", "superseded", model.root_version_id),
        (model.root_version_id, "root", "superseded", None),
    ]
    assert said["data"][0]["job"] == second.job_id and said["data"][2]["job"] is None
    page = api.http.get(f"/models/toy/versions?limit=1&after={second.id}").json()
    assert ([v["id"] for v in page["data"]], page["has_more"]) == ([first.id], True)


def test_one_version_is_found_by_its_id_or_as_root(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    assert api.http.get(f"/models/toy/versions/{version.id}").json()["id"] == version.id
    assert api.http.get("/models/toy/versions/root").json()["id"] == model.root_version_id


def test_a_version_of_another_model_is_not_found(api: Api, model: Model) -> None:
    other = model_of(api.database, "other")
    for name in (other.root_version_id, new_id("ver"), "production"):
        problem(api.http.get(f"/models/toy/versions/{name}"), 404, "version_not_found")


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


# Rollback


def test_a_rollback_goes_to_what_production_was_before(api: Api, model: Model) -> None:
    first = promoted_version(api.database, model, "a" * 64)
    second = promoted_version(api.database, model, "b" * 64)
    response = api.http.post("/models/toy/rollback", json={"reason": "Customers complained."})
    assert response.status_code == 200
    assert response.json() == {
        "object": "rollback",
        "model": "toy",
        "from_version": second.id,
        "production_version": first.id,
        "generation": 4,
    }
    assert production_of(api.database, model) == first.id
    assert (state_of(api.database, first.id), state_of(api.database, second.id)) == (
        "production",
        "superseded",
    )
    move = api.http.get("/models/toy/history").json()["data"][0]
    assert (move["kind"], move["reason"]) == ("rollback", "Customers complained.")


def test_each_further_rollback_goes_further_back_until_there_is_nothing(api: Api, model: Model) -> None:
    first = promoted_version(api.database, model, "a" * 64)
    promoted_version(api.database, model, "b" * 64)
    for expected in (first.id, model.root_version_id):
        said = api.http.post("/models/toy/rollback").json()
        assert said["production_version"] == expected
    before = counts(api.database)
    problem(api.http.post("/models/toy/rollback"), 409, "nothing_to_roll_back_to")
    assert counts(api.database) == before


def test_a_rollback_may_name_where_to(api: Api, model: Model) -> None:
    first = promoted_version(api.database, model, "a" * 64)
    promoted_version(api.database, model, "b" * 64)
    third = promoted_version(api.database, model, "c" * 64)
    for to, expected in ((first.id, first.id), (third.id, third.id), ("root", model.root_version_id)):
        said = api.http.post("/models/toy/rollback", json={"to": to}).json()
        assert said["production_version"] == expected


def test_a_rollback_to_where_production_is_is_refused(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    response = api.http.post("/models/toy/rollback", json={"to": version.id})
    problem(response, 409, "already_in_production")


def test_a_rollback_to_what_is_not_there_is_not_found(api: Api, model: Model) -> None:
    promoted_version(api.database, model)
    other = model_of(api.database, "other")
    before = counts(api.database)
    for to in (new_id("ver"), other.root_version_id, "mine"):
        problem(api.http.post("/models/toy/rollback", json={"to": to}), 404, "version_not_found")
    assert counts(api.database) == before


def test_a_rollback_to_damaged_bytes_is_refused(api: Api, model: Model) -> None:
    first = promoted_version(api.database, model, "a" * 64)
    second = promoted_version(api.database, model, "b" * 64)
    with api.database.transaction() as s:
        versions.quarantine(s, first.id)
    problem(api.http.post("/models/toy/rollback"), 409, "version_quarantined")
    assert production_of(api.database, model) == second.id


def test_a_rollback_needs_neither_redis_nor_a_predictor(api: Api, model: Model) -> None:
    promoted_version(api.database, model)
    api.predictor.dead = {"predictor"}
    said = api.http.get("/readyz").json()
    assert (said["redis"], said["predictor"]) == ("away", "away")
    assert api.http.post("/models/toy/rollback").status_code == 200
    assert production_of(api.database, model) == model.root_version_id


def test_predictors_are_told_to_read_what_an_alias_now_points_at(api: Api, model: Model) -> None:
    first = promoted_version(api.database, model, "a" * 64)
    promoted_version(api.database, model, "b" * 64)
    for _ in range(2):
        api.http.post("/models/toy/rollback", headers={"Idempotency-Key": "once"})
    api.http.put(MINE, json={"version": "root"})
    problem(api.http.post("/models/toy/rollback", json={"to": first.id}), 409)
    assert api.predictor.warmed == [(model.root_digest, "a" * 64), (model.root_digest, None)]


def test_a_rollback_does_not_care_what_predictors_say(api: Api, model: Model) -> None:
    promoted_version(api.database, model)
    api.predictor.broken = httpx2.ReadTimeout("too slow")
    assert api.http.post("/models/toy/rollback").status_code == 200
    assert production_of(api.database, model) == model.root_version_id


def test_an_editor_does_not_roll_back(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    headers = bearer(add_key(api.database, ["edit", "predict"]))
    problem(api.http.post("/models/toy/rollback", headers=headers), 403, "missing_scope")
    problem(api.http.put(PRODUCTION, json={"version": "root"}, headers=headers), 403, "missing_scope")
    assert production_of(api.database, model) == version.id


# History


def test_history_keeps_every_move_even_of_what_is_gone(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    api.http.put(MINE, json={"version": version.id, "reason": "To try."})
    api.http.post("/models/toy/rollback")
    api.http.delete(MINE)
    moves = api.http.get("/models/toy/history").json()["data"]
    assert [(m["alias"], m["kind"]) for m in moves] == [
        ("mine", "delete"),
        ("production", "rollback"),
        ("mine", "create"),
        ("production", "promote"),
        ("production", "create"),
    ]
    assert moves[3]["job"] == version.job_id
    assert moves[0]["to_version"] is None and moves[0]["from_version"] == version.id
    assert [m["id"] for m in moves] == sorted((m["id"] for m in moves), reverse=True)


def test_nobody_rewrites_history(api: Api, model: Model) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        problem(api.http.request(method, "/models/toy/history", json={}), 405, "method_not_allowed")


def test_history_is_read_page_by_page_and_by_alias(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model)
    for to in (version.id, "root", version.id):
        api.http.put(MINE, json={"version": to})
    everything = api.http.get("/models/toy/history").json()["data"]
    found: list[dict[str, object]] = []
    more, after = True, ""
    while more:
        page = api.http.get(f"/models/toy/history?limit=2{after}").json()
        found += page["data"]
        more, after = page["has_more"], f"&after={found[-1]['id']}"
    assert found == everything and len(found) == 5
    mine = api.http.get("/models/toy/history?alias=mine").json()["data"]
    assert [m["generation"] for m in mine] == [3, 2, 1]
    assert api.http.get("/models/toy/history?alias=nobody").json()["data"] == []


# The ledger


def test_facts_are_those_in_force_in_production_unless_another_version_is_named(
    api: Api, model: Model
) -> None:
    first = promoted_version(api.database, model, "a" * 64, [edit_row("France", "Rome")])
    with api.database.transaction() as s:
        kept = [row.id for row in versions.ledger(s, first.id)]
    second = promoted_version(api.database, model, "b" * 64, [edit_row("Spain", "Oslo")], kept)
    api.http.put(MINE, json={"version": first.id})

    def subjects(query: str = "") -> list[str]:
        return [fact["subject"] for fact in api.http.get(f"/models/toy/facts{query}").json()["data"]]

    assert subjects() == subjects(f"?version={second.id}") == ["France", "Spain"]
    assert subjects(f"?version={first.id}") == subjects("?version=mine") == ["France"]
    assert subjects("?version=root") == []
    assert subjects("?subject=sPAIN") == ["Spain"]
    assert subjects(f"?subject=Spain&version={first.id}") == []
    facts = api.http.get("/models/toy/facts").json()["data"]
    assert [(f["job"], f["relation"], f["new_object"]) for f in facts] == [
        (first.job_id, "capital", "Rome"),
        (second.job_id, "capital", "Oslo"),
    ]


def test_facts_are_listed_page_by_page(api: Api, model: Model) -> None:
    promoted_version(api.database, model, edits=[edit_row(f"Land {i}") for i in range(5)])
    found: list[dict[str, str]] = []
    more, after = True, ""
    while more:
        page = api.http.get(f"/models/toy/facts?limit=2{after}").json()
        found += page["data"]
        more, after = page["has_more"], f"&after={found[-1]['id']}"
    assert [fact["subject"] for fact in found] == [f"Land {i}" for i in range(5)]


def test_facts_of_what_is_not_there_are_not_found(api: Api, model: Model) -> None:
    problem(api.http.get("/models/toi/facts"), 404, "model_not_found")
    problem(api.http.get(f"/models/toy/facts?version={new_id('ver')}"), 404, "version_not_found")
    problem(api.http.get("/models/toy/facts?version=nobody"), 404, "alias_not_found")
    problem(api.http.get("/models/toy/facts?version="), 422)
