"""POST /models/{model}/rollback: where production goes back to, and what that needs."""

import httpx2
import pytest

from service import versions
from service.ids import new_id
from service.tables import Model
from tests.support.api import (
    MINE,
    PRODUCTION,
    Api,
    add_key,
    api_without_redis,
    bearer,
    counts,
    model_of,
    problem,
    production_of,
    promoted_version,
    state_of,
)

api = pytest.fixture(api_without_redis)


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
