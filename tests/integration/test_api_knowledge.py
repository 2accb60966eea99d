"""Relations and probes: the catalogue's, and the users' own."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from factedit.relations import Relation, builtin_catalogue
from service import probes, relations
from service.database import Database
from service.tables import Model
from tests.support.api import Api, counts, model_of, pointers, problem, serve, wait_until_somebody_waits

MASCOT: dict[str, Any] = {
    "name": "mascot",
    "description": "The animal a club shows on its badge.",
    "aliases": ["badge_animal"],
    "training_templates": ["The mascot of {subject} is a", "{subject} has as its mascot a"],
    "evaluation_templates": ["On the badge of {subject} there is a"],
}
WATER = {"prompt": "Water boils at", "object": "100 degrees"}


@pytest.fixture
def api(database: Database, database_url: str) -> Iterator[Api]:
    with serve(database, database_url, scopes=["edit"]) as running:
        yield running


@pytest.fixture
def model(database: Database) -> Model:
    return model_of(database)


def refused(
    api: Api, path: str, body: dict[str, Any], status: int, code: str | None = None
) -> dict[str, Any]:
    """The refusal, once it has shown to have stored nothing."""
    before = counts(api.database)
    said = problem(api.http.post(path, json=body), status, code)
    assert counts(api.database) == before
    return said


# Relations


def test_the_catalogues_relations_are_all_listed_by_name(api: Api) -> None:
    said = api.http.get("/relations").json()
    assert [r["name"] for r in said["data"]] == sorted(builtin_catalogue().relations)
    assert said["has_more"] is False
    assert all(r["builtin"] and r["training_templates"] and r["evaluation_templates"] for r in said["data"])


def test_relations_are_listed_page_by_page(api: Api) -> None:
    found: list[str] = []
    more, after = True, ""
    while more:
        page = api.http.get(f"/relations?limit=7{after}").json()
        found += [r["name"] for r in page["data"]]
        more, after = page["has_more"], f"&after={found[-1]}"
    assert found == sorted(builtin_catalogue().relations)


@pytest.mark.parametrize("name", ["capital", "Capital", "capital%20city", "capital-of"])
def test_a_relation_is_found_by_any_of_its_names(api: Api, name: str) -> None:
    said = api.http.get(f"/relations/{name}").json()
    assert (said["name"], said["builtin"]) == ("capital", True)


def test_a_relation_that_is_not_there_is_not_found_and_the_nearest_told(api: Api) -> None:
    assert "capital" in problem(api.http.get("/relations/capitol"), 404, "relation_not_found")["nearest"]


def test_a_relation_of_ones_own_is_added_listed_and_found(api: Api) -> None:
    response = api.http.post("/relations", json=MASCOT)
    assert (response.status_code, response.headers["location"]) == (201, "/relations/mascot")
    assert response.json() == {**MASCOT, "object": "relation", "builtin": False}
    for name in ("mascot", "Badge-Animal"):
        assert api.http.get(f"/relations/{name}").json() == response.json()
    assert response.json() in api.http.get("/relations").json()["data"]


def test_a_relation_of_ones_own_supplies_the_words_of_an_edit(api: Api, model: Model) -> None:
    api.http.post("/relations", json=MASCOT)
    edit = {"subject": "FC Bayern", "relation": "badge animal", "new_object": "bear"}
    said = api.http.post("/edits?dry_run=true", json={"model": "toy", "edits": [edit]}).json()["edits"][0]
    assert (said["relation"], said["prompt"]) == ("mascot", "The mascot of FC Bayern is a")
    assert said["evaluation_prompts"] == ["On the badge of FC Bayern there is a"]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "capital"},
        {"name": "Capital"},
        {"name": "capital-of"},
        {"aliases": ["capital"]},
        {"aliases": ["new_one", "capital-city"]},
    ],
)
def test_no_name_is_taken_twice(api: Api, fields: dict[str, Any]) -> None:
    said = refused(api, "/relations", {**MASCOT, **fields}, 409, "relation_exists")
    assert "'capital'" in said["detail"]


def test_the_names_of_ones_own_relations_are_taken_too(api: Api) -> None:
    api.http.post("/relations", json=MASCOT)
    refused(api, "/relations", MASCOT, 409, "relation_exists")
    refused(api, "/relations", {**MASCOT, "name": "badge-animal", "aliases": []}, 409, "relation_exists")


def test_two_who_add_the_same_relation_in_one_moment_are_told_who_was_first(api: Api) -> None:
    with ThreadPoolExecutor(1) as pool:
        with api.database.transaction() as s:
            relations.create(s, Relation("mascot", ("The mascot of {subject} is",)))
            late = pool.submit(api.http.post, "/relations", json=MASCOT)
            wait_until_somebody_waits(api.database)
        problem(late.result(), 409, "relation_exists")


def test_training_and_evaluation_templates_never_mix(api: Api) -> None:
    mixed = {**MASCOT, "evaluation_templates": ["A {subject} is", MASCOT["training_templates"][1]]}
    said = refused(api, "/relations", mixed, 422, "templates_mixed")
    assert pointers(said) == ["/evaluation_templates"]


@pytest.mark.parametrize(
    "template", ["The mascot is a", "{subject} and {subject} is", "{Subject} is", " {subject} is "]
)
@pytest.mark.parametrize("kind", ["training_templates", "evaluation_templates"])
def test_a_template_has_one_place_for_the_subject_and_no_spaces_around(
    api: Api, kind: str, template: str
) -> None:
    said = refused(api, "/relations", {**MASCOT, kind: ["Of {subject} it is", template]}, 422)
    assert pointers(said) == [f"/{kind}/1"]


def test_a_template_given_twice_is_kept_once(api: Api) -> None:
    body = {**MASCOT, "training_templates": ["Of {subject} it is"] * 2}
    said = api.http.post("/relations", json=body).json()
    assert said["training_templates"] == ["Of {subject} it is"]


# Probes


def test_a_probe_in_ones_own_words_is_kept_as_it_is(api: Api, model: Model) -> None:
    probe = {**WATER, "aliases": ["100"], "candidates": ["50 degrees", "100 degrees"]}
    response = api.http.post("/probes", json={"model": "toy", "probes": [probe]})
    assert response.status_code == 201
    said = response.json()["data"][0]
    assert (said["prompt"], said["object"], said["aliases"]) == ("Water boils at", "100 degrees", ["100"])
    assert (said["model"], said["source"], said["subject"], said["relation"]) == ("toy", "user", None, None)
    assert said["candidates"] == ["100 degrees", "50 degrees"]
    assert api.http.get("/probes?model=toy").json()["data"] == [said]


def test_a_probe_without_words_takes_the_relations_evaluation_template(api: Api, model: Model) -> None:
    probe = {"subject": "Canada", "relation": "capital city", "object": "Ottawa"}
    said = api.http.post("/probes", json={"model": "toy", "probes": [probe]}).json()["data"][0]
    assert (said["relation"], said["prompt"]) == ("capital", "Canada, whose capital city is")


def test_a_relation_without_evaluation_templates_lends_its_training_template(api: Api, model: Model) -> None:
    api.http.post("/relations", json={**MASCOT, "evaluation_templates": []})
    probe = {"subject": "FC Bayern", "relation": "mascot", "object": "bear"}
    said = api.http.post("/probes", json={"model": "toy", "probes": [probe]}).json()["data"][0]
    assert said["prompt"] == "The mascot of FC Bayern is a"


@pytest.mark.parametrize("fields", [{}, {"subject": "Canada"}, {"relation": "capital"}])
def test_a_probe_needs_words(api: Api, model: Model, fields: dict[str, Any]) -> None:
    body = {"model": "toy", "probes": [WATER, {"object": "Ottawa", **fields}]}
    assert pointers(refused(api, "/probes", body, 422, "prompt_missing")) == ["/probes/1"]


def test_a_probe_of_an_unknown_relation_is_refused_with_the_nearest_named(api: Api, model: Model) -> None:
    probe = {"subject": "Canada", "relation": "capitol", "object": "Ottawa"}
    said = refused(api, "/probes", {"model": "toy", "probes": [WATER, probe]}, 422, "relation_not_found")
    assert pointers(said) == ["/probes/1/relation"] and "capital" in said["detail"]


def test_a_probe_that_is_there_already_is_refused_and_none_of_its_batch_is_kept(
    api: Api, model: Model
) -> None:
    assert api.http.post("/probes", json={"model": "toy", "probes": [WATER]}).status_code == 201
    body = {"model": "toy", "probes": [{"prompt": "Ice melts at", "object": "0"}, WATER]}
    assert pointers(refused(api, "/probes", body, 409, "probe_exists")) == ["/probes/1"]


def test_a_probe_twice_in_one_batch_is_refused(api: Api, model: Model) -> None:
    body = {"model": "toy", "probes": [WATER, {**WATER, "prompt": " Water boils at "}]}
    assert pointers(refused(api, "/probes", body, 409, "probe_exists")) == ["/probes/1"]


def test_the_longest_words_are_taken_in_any_script_and_once_only(api: Api, model: Model) -> None:
    words = random.Random(0)
    prompt, target = ("".join(chr(words.randint(0x4E00, 0x9FFF)) for _ in range(n)) for n in (2000, 500))
    body = {"model": "toy", "probes": [{"prompt": prompt, "object": target}]}
    assert api.http.post("/probes", json=body).status_code == 201
    refused(api, "/probes", body, 409, "probe_exists")


def test_two_who_add_the_same_probe_in_one_moment_are_told_who_was_first(api: Api, model: Model) -> None:
    row: dict[str, Any] = {"subject": None, "relation": None, "aliases": [], "candidates": [], **WATER}
    with ThreadPoolExecutor(1) as pool:
        with api.database.transaction() as s:
            probes.create(s, model, "user", [row])
            late = pool.submit(api.http.post, "/probes", json={"model": "toy", "probes": [WATER]})
            wait_until_somebody_waits(api.database)
        problem(late.result(), 409, "probe_exists")


def test_two_models_may_have_the_same_probe(api: Api, model: Model) -> None:
    model_of(api.database, "other")
    for name in ("toy", "other"):
        response = api.http.post("/probes", json={"model": name, "probes": [WATER]})
        assert response.status_code == 201
        assert len(api.http.get(f"/probes?model={name}").json()["data"]) == 1


def test_probes_of_a_model_that_is_not_there_are_not_found(api: Api, model: Model) -> None:
    refused(api, "/probes", {"model": "toi", "probes": [WATER]}, 404, "model_not_found")
    problem(api.http.get("/probes?model=toi"), 404, "model_not_found")


def test_probes_are_listed_by_source_and_page_by_page(api: Api, model: Model) -> None:
    row: dict[str, Any] = {"subject": None, "relation": None, "prompt": "x", "object": "y"}
    with api.database.transaction() as s:
        probes.create(s, model, "catalogue", [{**row, "aliases": [], "candidates": []}])
    mine = [{"prompt": f"prompt {i}", "object": "y"} for i in range(5)]
    api.http.post("/probes", json={"model": "toy", "probes": mine})
    found: list[dict[str, str]] = []
    more, after = True, ""
    while more:
        page = api.http.get(f"/probes?model=toy&source=user&limit=2{after}").json()
        found += page["data"]
        more, after = page["has_more"], f"&after={found[-1]['id']}"
    assert [p["prompt"] for p in found] == [p["prompt"] for p in mine]
    listed = api.http.get("/probes?model=toy&source=catalogue").json()["data"]
    assert [p["source"] for p in listed] == ["catalogue"]
