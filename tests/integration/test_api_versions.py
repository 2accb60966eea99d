"""Models, versions, their history and their ledger, as the API shows them."""

import pytest

from service import versions
from service.ids import new_id
from service.tables import Model
from tests.support.api import MINE, Api, api_without_redis, model_of, problem, promoted_version
from tests.support.records import edit_row

api = pytest.fixture(api_without_redis)


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
