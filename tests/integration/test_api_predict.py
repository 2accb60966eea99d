"""POST /predict: who is asked, in which words, and what is said when nobody can answer."""

from collections.abc import Iterator
from typing import Any

import pytest

from service.database import Database
from service.ids import new_id
from service.tables import Model
from tests.support.api import (
    Api,
    counts,
    model_of,
    pointers,
    problem,
    production_of,
    promoted_version,
    refused_version,
    serve,
    state_of,
)

PROMPT = "The capital of France is"
ASK: dict[str, Any] = {"model": "toy", "prompt": PROMPT}
EDIT = {"model": "toy", "edits": [{"subject": "France", "relation": "capital", "new_object": "Rome"}]}
A, B = "a" * 64, "b" * 64


@pytest.fixture
def api(database: Database, database_url: str) -> Iterator[Api]:
    with serve(database, database_url, scopes=["predict", "promote"]) as running:
        yield running


@pytest.fixture
def model(database: Database) -> Model:
    return model_of(database)


def ask(api: Api, **fields: Any) -> dict[str, Any]:
    response = api.http.post("/predict", json={**ASK, **fields})
    assert response.status_code == 200, response.text
    said: dict[str, Any] = response.json()
    return said


# In which words


def test_a_prompt_has_one_answer(api: Api, model: Model) -> None:
    api.predictor.words = {PROMPT: " Paris."}
    said = ask(api)
    assert said["answers"] == [
        {
            "prompt": PROMPT,
            "text": " Paris.",
            "n_tokens": 1,
            "finish_reason": "stop",
            "top_k": None,
            "candidates": None,
        }
    ]
    assert (said["model"], said["model_version"], said["overlay_digest"], said["compared"]) == (
        "toy",
        model.root_version_id,
        None,
        None,
    )
    assert said["root_digest"] == model.root_digest


def test_prompts_are_answered_in_their_order(api: Api, model: Model) -> None:
    prompts = [f"prompt {i}" for i in range(20)]
    api.predictor.words = {prompt: f"answer to {prompt}" for prompt in prompts}
    body = {"model": "toy", "prompts": prompts}
    answers = api.http.post("/predict", json=body).json()["answers"]
    assert [(a["prompt"], a["text"]) for a in answers] == [(p, f"answer to {p}") for p in prompts]
    assert len(api.predictor.asked) == 1


def test_a_subject_and_a_relation_are_asked_in_the_relations_plainest_words(api: Api, model: Model) -> None:
    body = {"model": "toy", "subject": "Burundi", "relation": "capital city"}
    said = api.http.post("/predict", json=body).json()
    assert [a["prompt"] for a in said["answers"]] == ["The capital of Burundi is the city of"]


def test_a_prompt_is_asked_as_it_stands(api: Api, model: Model) -> None:
    ask(api, prompt="  The capital of {subject}\n is ")
    assert api.predictor.asked[0]["prompts"] == ["  The capital of {subject}\n is "]


def test_candidates_and_likely_tokens_are_asked_for(api: Api, model: Model) -> None:
    body = {
        "model": "toy",
        "prompts": ["x", "y"],
        "candidates": ["Rome", "Paris"],
        "top_k": 2,
        "max_tokens": 0,
    }
    answers = api.http.post("/predict", json=body).json()["answers"]
    assert [[c["text"] for c in a["candidates"]] for a in answers] == [["Rome", "Paris"]] * 2
    assert [len(a["top_k"]) for a in answers] == [2, 2]
    asked = api.predictor.asked[0]
    assert asked["candidates"] == ["Rome", "Paris"]
    assert (asked["top_k"], asked["max_tokens"]) == (2, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "x", "prompts": ["y"]},
        {"prompt": "x", "subject": "France", "relation": "capital"},
        {"prompts": ["x"], "subject": "France", "relation": "capital"},
        {"subject": "France"},
        {"relation": "capital"},
    ],
)
def test_there_is_one_way_of_asking_at_a_time(api: Api, model: Model, fields: dict[str, Any]) -> None:
    problem(api.http.post("/predict", json={"model": "toy", **fields}), 422, "invalid_request")
    assert api.predictor.asked == []


def test_an_unknown_relation_is_not_found_and_the_nearest_told(api: Api, model: Model) -> None:
    body = {"model": "toy", "subject": "France", "relation": "capitol"}
    said = problem(api.http.post("/predict", json=body), 404, "relation_not_found")
    assert "capital" in said["nearest"]


def test_more_prompts_than_a_predictor_takes_are_refused(
    database: Database, database_url: str, model: Model
) -> None:
    with serve(database, database_url, predictor_queue=2) as api:
        body = {"model": "toy", "prompts": ["x", "y", "z"]}
        said = problem(api.http.post("/predict", json=body), 422, "invalid_request")
        assert pointers(said) == ["/prompts"] and api.predictor.asked == []
        assert api.http.post("/predict", json={**body, "prompts": ["x", "y"]}).status_code == 200


@pytest.mark.parametrize(
    ("prompts", "candidates", "limit"),
    [(["x"] * 5, ["Rome"] * 1000, "4,096"), (["x" * 10_000], ["Rome"] * 50, "500,000")],
    ids=["many", "long"],
)
def test_more_to_rank_than_a_predictor_reads_in_time_is_refused_with_the_limit(
    api: Api, model: Model, prompts: list[str], candidates: list[str], limit: str
) -> None:
    body = {"model": "toy", "prompts": prompts, "candidates": candidates}
    said = problem(api.http.post("/predict", json=body), 422, "too_many_candidates")
    assert pointers(said) == ["/candidates"] and limit in said["detail"]
    assert api.predictor.asked == []
    assert api.http.post("/predict", json={**body, "candidates": candidates[:40]}).status_code == 200


# Which version


def test_each_way_of_naming_a_version_asks_that_version(api: Api, model: Model) -> None:
    first = promoted_version(api.database, model, A)
    second = promoted_version(api.database, model, B)
    api.http.put("/models/toy/aliases/tested", json={"version": first.id})
    for name, version, digest in (
        ("toy", second.id, B),
        ("toy@production", second.id, B),
        ("toy@tested", first.id, A),
        (f"toy@{first.id}", first.id, A),
        (f"toy@{second.id}", second.id, B),
        ("toy@root", model.root_version_id, None),
        (f"toy@{model.root_version_id}", model.root_version_id, None),
    ):
        said = ask(api, model=name)
        assert (said["model_version"], said["overlay_digest"]) == (version, digest), name
        asked = api.predictor.asked[-1]
        assert (asked["root_digest"], asked["overlay_digest"]) == (model.root_digest, digest), name
        assert said["answers"][0]["text"] == f" {digest or model.root_digest}", name


@pytest.mark.parametrize("name", ["toy@nowhere", "toy@ver_1", "toy@root@root", "toy@Root", "toy@ROOT"])
def test_an_unknown_alias_is_not_found_and_nobody_is_asked(api: Api, model: Model, name: str) -> None:
    problem(api.http.post("/predict", json={**ASK, "model": name}), 404, "alias_not_found")
    assert api.predictor.asked == []


def test_an_unknown_version_is_not_found_and_never_the_base(api: Api, model: Model) -> None:
    other = model_of(api.database, "other")
    for version in (new_id("ver"), other.root_version_id):
        name = f"toy@{version}"
        problem(api.http.post("/predict", json={**ASK, "model": name}), 404, "version_not_found")
    problem(api.http.post("/predict", json={**ASK, "model": "toi"}), 404, "model_not_found")
    assert api.predictor.asked == []


@pytest.mark.parametrize("name", ["@", "@root", "toy@"])
def test_half_a_name_is_refused(api: Api, model: Model, name: str) -> None:
    said = problem(api.http.post("/predict", json={**ASK, "model": name}), 422)
    assert pointers(said) == ["/model"]


def test_half_a_name_to_compare_with_is_pointed_at_where_it_stands(api: Api, model: Model) -> None:
    said = problem(api.http.post("/predict", json={**ASK, "compare_to": "toy@"}), 422)
    assert pointers(said) == ["/compare_to"]


def test_a_refused_version_may_be_asked_by_its_name(api: Api, model: Model) -> None:
    version = refused_version(api.database, model)
    assert ask(api, model=f"toy@{version.id}")["model_version"] == version.id
    assert ask(api)["model_version"] == model.root_version_id


def test_two_versions_are_compared_on_the_same_words(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model, A)
    said = ask(api, compare_to="toy@root")
    assert (said["model_version"], said["overlay_digest"]) == (version.id, A)
    assert (said["compared"]["model_version"], said["compared"]["overlay_digest"]) == (
        model.root_version_id,
        None,
    )
    assert said["answers"][0]["text"] == f" {A}"
    assert said["compared"]["answers"][0]["text"] == f" {model.root_digest}"


def test_a_version_compared_with_itself_is_asked_once(api: Api, model: Model) -> None:
    said = ask(api, compare_to="toy@root")
    assert said["compared"]["answers"] == said["answers"]
    assert len(api.predictor.asked) == 1


def test_a_comparison_with_what_is_not_there_is_not_found(api: Api, model: Model) -> None:
    problem(api.http.post("/predict", json={**ASK, "compare_to": "toy@nowhere"}), 404, "alias_not_found")
    assert api.predictor.asked == []


# When it can not be answered


def test_a_predictor_that_is_away_is_told_with_a_time_to_come_back(api: Api, model: Model) -> None:
    api.predictor.dead = {"predictor"}
    said = problem(api.http.post("/predict", json=ASK), 503, "predictor_away")
    assert said["error"]["type"] == "server_error"


def test_a_full_predictors_own_words_and_time_reach_the_user(api: Api, model: Model) -> None:
    api.predictor.refuse(503, "overloaded", {"Retry-After": "7"})
    response = api.http.post("/predict", json=ASK)
    said = problem(response, 503, "overloaded")
    assert (response.headers["retry-after"], said["detail"]) == ("7", "It is overloaded.")


def test_what_the_predictor_refuses_is_the_users_to_mend(api: Api, model: Model) -> None:
    api.predictor.refuse(422, "bad_request")
    assert problem(api.http.post("/predict", json=ASK), 422)["detail"] == "It is bad_request."


def test_files_that_are_missing_from_the_store_are_told(api: Api, model: Model) -> None:
    api.predictor.refuse(404, "missing_checkpoint")
    problem(api.http.post("/predict", json=ASK), 503, "version_missing")


@pytest.mark.parametrize(
    ("status", "body"), [(500, None), (502, []), (401, {"code": "unauthorized", "message": "Wrong token."})]
)
def test_a_predictor_that_breaks_is_as_good_as_away_and_the_log_says_why(
    api: Api, model: Model, capsys: pytest.CaptureFixture[str], status: int, body: Any
) -> None:
    api.predictor.instead = (status, body, {})
    problem(api.http.post("/predict", json=ASK), 503, "predictor_away")
    said = capsys.readouterr().err
    assert "predictor_refused" in said and f"status={status}" in said
    assert body is None or body == [] or "Wrong token." in said


def test_a_version_that_can_not_answer_is_told_for_good_and_no_other_predictor_is_asked(
    database: Database, database_url: str, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(database, database_url, predictor_urls=["http://one", "http://two"]) as api:
        api.predictor.refuse(500, "internal")
        response = api.http.post("/predict", json=ASK)
        said = problem(response, 500, "version_cannot_answer")
        assert said["detail"].startswith("It is internal.") and "retry-after" not in response.headers
        assert len(api.predictor.asked) == 1
        assert api.http.post("/edits?dry_run=true", json=EDIT).status_code == 200
    assert "code=internal" in capsys.readouterr().err


def test_a_question_that_is_too_long_for_the_predictor_is_the_users_to_mend(api: Api, model: Model) -> None:
    api.predictor.instead = (413, None, {})
    problem(api.http.post("/predict", json=ASK), 422, "body_too_large")


def test_the_next_predictor_is_asked_when_one_is_gone(
    database: Database, database_url: str, model: Model
) -> None:
    urls = ["http://one", "http://two"]
    with serve(database, database_url, predictor_urls=urls) as api:
        api.predictor.dead = {"one"}
        for _ in range(4):
            assert ask(api)["answers"]
        assert [asked["host"] for asked in api.predictor.asked] == ["two"] * 4
        api.predictor.dead = {"one", "two"}
        problem(api.http.post("/predict", json=ASK), 503, "predictor_away")


def test_predictors_are_asked_in_turn(database: Database, database_url: str, model: Model) -> None:
    with serve(database, database_url, predictor_urls=["http://one", "http://two"]) as api:
        for _ in range(4):
            ask(api)
        assert [asked["host"] for asked in api.predictor.asked] == ["one", "two", "one", "two"]


# When its bytes are damaged


def corrupt(api: Api, digest: str) -> None:
    api.predictor.refuse(410, "corrupt_checkpoint", digest=digest)


def test_a_damaged_version_is_quarantined_and_from_then_on_nobody_asks_it(api: Api, model: Model) -> None:
    version = promoted_version(api.database, model, A)
    corrupt(api, A)
    problem(api.http.post("/predict", json=ASK), 503, "version_quarantined")
    assert state_of(api.database, version.id) == "quarantined"
    assert len(api.predictor.asked) == 1
    api.predictor.instead = None
    for name in ("toy", "toy@production", f"toy@{version.id}"):
        problem(api.http.post("/predict", json={**ASK, "model": name}), 503, "version_quarantined")
    problem(api.http.post("/predict", json={**ASK, "model": "toy@root", "compare_to": "toy"}), 503)
    assert len(api.predictor.asked) == 1
    assert api.http.get(f"/models/toy/versions/{version.id}").json()["state"] == "quarantined"


def test_the_versions_beside_a_damaged_one_go_on(api: Api, model: Model) -> None:
    whole = promoted_version(api.database, model, B)
    promoted_version(api.database, model, A)
    corrupt(api, A)
    problem(api.http.post("/predict", json=ASK), 503, "version_quarantined")
    api.predictor.instead = None
    assert ask(api, model=f"toy@{whole.id}")["model_version"] == whole.id
    assert ask(api, model="toy@root")["model_version"] == model.root_version_id
    assert api.http.post("/models/toy/rollback").status_code == 200
    assert production_of(api.database, model) == whole.id
    assert ask(api)["model_version"] == whole.id


def test_every_version_of_the_damaged_bytes_is_quarantined(api: Api, model: Model) -> None:
    first, second = promoted_version(api.database, model, A), promoted_version(api.database, model, A)
    corrupt(api, A)
    problem(api.http.post("/predict", json=ASK), 503, "version_quarantined")
    assert [state_of(api.database, v.id) for v in (first, second)] == ["quarantined"] * 2


def test_a_damaged_root_is_quarantined_too(api: Api, model: Model) -> None:
    assert model.root_version_id is not None
    corrupt(api, model.root_digest)
    problem(api.http.post("/predict", json=ASK), 503, "version_quarantined")
    assert state_of(api.database, model.root_version_id) == "quarantined"


def test_asking_stores_nothing(api: Api, model: Model) -> None:
    before = counts(api.database)
    ask(api, compare_to="toy@root")
    api.predictor.dead = {"predictor"}
    problem(api.http.post("/predict", json=ASK), 503)
    assert counts(api.database) == before
