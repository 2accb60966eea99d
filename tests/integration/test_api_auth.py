"""Who may do what, for every call there is; and that the API never opens its door by accident."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service import keys
from service.api.app import create_app
from service.database import Database
from service.ids import new_id
from service.settings import Settings
from tests.support.api import NOWHERE, Api, add_key, bearer, counts, model_of, problem, serve

# Every call of the API, and the scope it needs. A new one fails this file until it stands here.
NEEDS = {
    ("GET", "/healthz"): "nothing",
    ("GET", "/readyz"): "nothing",
    ("GET", "/jobs"): "any",
    ("GET", "/jobs/{job}"): "any",
    ("GET", "/jobs/{job}/report"): "any",
    ("GET", "/jobs/{job}/events"): "any",
    ("GET", "/models"): "any",
    ("GET", "/models/{model}"): "any",
    ("GET", "/models/{model}/facts"): "any",
    ("GET", "/models/{model}/versions"): "any",
    ("GET", "/models/{model}/versions/{version}"): "any",
    ("GET", "/models/{model}/aliases"): "any",
    ("GET", "/models/{model}/aliases/{alias}"): "any",
    ("GET", "/models/{model}/history"): "any",
    ("GET", "/relations"): "any",
    ("GET", "/relations/{name}"): "any",
    ("GET", "/probes"): "any",
    ("POST", "/predict"): "predict",
    ("POST", "/edits"): "edit",
    ("POST", "/jobs/{job}/cancel"): "edit",
    ("POST", "/jobs/{job}/revert"): "edit",
    ("POST", "/relations"): "edit",
    ("POST", "/probes"): "edit",
    ("PUT", "/models/{model}/aliases/{alias}"): "promote",
    ("DELETE", "/models/{model}/aliases/{alias}"): "promote",
    ("POST", "/models/{model}/rollback"): "promote",
}
NAMES = {
    "model": "toy",
    "job": new_id("job"),
    "version": new_id("ver"),
    "alias": "production",
    "name": "capital",
}
GUARDED = [call for call, scope in NEEDS.items() if scope != "nothing"]


@pytest.fixture
def api(database: Database, database_url: str) -> Iterator[Api]:
    model_of(database)
    with serve(database, database_url) as running:
        yield running


def status_of(api: Api, method: str, path: str, headers: dict[str, str]) -> int:
    """Of a call without a body, which whoever may make it is told to mend."""
    response = api.http.request(method, path.format(**NAMES), headers=headers)
    if response.status_code >= 400:
        problem(response, response.status_code)
    return response.status_code


def test_every_call_says_here_what_it_needs(api: Api) -> None:
    paths = api.http.get("/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, calls in paths.items() for method in calls} == NEEDS.keys()


def test_without_a_key_nobody_gets_in(api: Api) -> None:
    before = counts(api.database)
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Basic YTpi"}):
        for method, path in GUARDED:
            response = api.http.request(method, path.format(**NAMES), headers=headers)
            said = problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
            assert said["error"]["type"] == "authentication_error"
    assert counts(api.database) == before


def test_with_a_wrong_or_a_revoked_key_nobody_gets_in(api: Api) -> None:
    right = add_key(api.database, ["admin"])
    revoked = add_key(api.database, ["admin"], revoked=True)
    before = counts(api.database)
    for secret in (revoked, keys.generate()[0], right[:-1], right + "x", right.upper(), "fe_", "' or 1=1 --"):
        for method, path in GUARDED:
            response = api.http.request(method, path.format(**NAMES), headers=bearer(secret))
            problem(response, 401, "invalid_api_key")
    assert counts(api.database) == before


def test_a_key_is_no_key_by_its_hash(api: Api) -> None:
    secret = add_key(api.database, ["admin"])
    problem(api.http.get("/jobs", headers=bearer(keys.hash_of(secret))), 401, "invalid_api_key")


@pytest.mark.parametrize("scope", keys.SCOPES)
def test_a_key_does_what_its_scope_allows_and_no_more(api: Api, scope: str) -> None:
    headers = bearer(add_key(api.database, [scope]))
    before = counts(api.database)
    for (method, path), needed in NEEDS.items():
        status = status_of(api, method, path, headers)
        allowed = needed in ("nothing", "any", scope) or scope == "admin"
        assert status != 401, (method, path)
        assert (status != 403) == allowed, (method, path, status)
    # The admin rolled back to nowhere, and nobody deleted production: nothing moved.
    assert counts(api.database) == before


def test_a_refusal_names_the_scope_that_is_missing(api: Api) -> None:
    headers = bearer(add_key(api.database, ["edit", "predict"]))
    said = problem(api.http.post("/models/toy/rollback", headers=headers), 403, "missing_scope")
    assert "'promote'" in said["detail"] and "edit, predict" in said["detail"]
    assert said["error"]["type"] == "permission_error"


def test_who_may_not_promote_may_not_loosen_the_gate_of_an_automatic_promotion(
    api: Api,
) -> None:
    edits = [{"subject": "France", "relation": "capital", "new_object": "Rome"}]
    body = {"model": "toy", "edits": edits, "gate": {"probes": 900, "margin": 0.5}}
    editor, promoter = (
        bearer(add_key(api.database, ["edit"])),
        bearer(add_key(api.database, ["edit", "promote"])),
    )
    said = problem(api.http.post("/edits", json=body, headers=editor), 403, "missing_scope")
    assert said["errors"][0]["pointer"] == "/gate/margin" and "manual" in said["detail"]
    strict = {**body, "gate": {"margin": 0.01, "min_efficacy": 0.9}}
    for allowed, headers in (
        ({**body, "promotion": "manual"}, editor),
        (strict, editor),
        (body, promoter),
    ):
        assert api.http.post("/edits", json=allowed, headers=headers).status_code == 202, allowed


def test_several_scopes_add_up(api: Api) -> None:
    headers = bearer(add_key(api.database, ["edit", "promote"]))
    assert api.http.post("/edits", headers=headers).status_code == 422
    assert api.http.post("/models/toy/rollback", headers=headers).status_code == 409
    problem(api.http.post("/predict", headers=headers), 403)


def test_revoking_a_key_shuts_it_out_at_once(api: Api) -> None:
    with api.database.transaction() as s:
        row, secret = keys.create(s, "short-lived", ["predict"])
    assert api.http.get("/jobs", headers=bearer(secret)).status_code == 200
    with api.database.transaction() as s:
        keys.revoke(s, row.id)
    problem(api.http.get("/jobs", headers=bearer(secret)), 401, "invalid_api_key")


def test_the_scheme_may_be_written_in_any_case(api: Api) -> None:
    secret = add_key(api.database, ["predict"])
    for scheme in ("bearer", "BEARER"):
        assert api.http.get("/jobs", headers={"Authorization": f"{scheme} {secret}"}).status_code == 200


def test_whether_an_address_exists_is_told_only_to_those_with_a_key(api: Api) -> None:
    for path in ("/nowhere", "/models/nowhere", "/docs/oauth2-redirect"):
        problem(api.http.get(path, headers={"Authorization": ""}), 401, "missing_api_key")


def test_the_documents_and_the_health_are_open(api: Api) -> None:
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert api.http.get(path, headers={"Authorization": ""}).status_code == 200
    assert api.http.get("/", headers={"Authorization": ""}, follow_redirects=False).status_code == 307


def test_readiness_names_the_parts_that_are_away(api: Api) -> None:
    api.predictor.dead = {"predictor"}
    said = api.http.get("/readyz").json()
    assert said == {"ready": True, "database": "ok", "redis": "away", "predictor": "away"}


def test_a_predictor_that_does_not_know_our_token_is_not_ready_and_that_is_logged(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.predictor.may_ask = False
    assert api.http.get("/readyz").json()["predictor"] == "away"
    assert "predictor_not_ready" in (said := capsys.readouterr().err) and "may_ask=false" in said


# Whether it starts at all


def test_it_does_not_start_without_a_key(database: Database, database_url: str) -> None:
    app = create_app(Settings(database_url=database_url, redis_url=NOWHERE))
    with pytest.raises(keys.NoKey, match="factedit key create"), TestClient(app):
        pass


def test_it_does_not_start_with_revoked_keys_only(database: Database, database_url: str) -> None:
    add_key(database, ["admin"], revoked=True)
    app = create_app(Settings(database_url=database_url, redis_url=NOWHERE))
    with pytest.raises(keys.NoKey), TestClient(app):
        pass


def test_it_starts_without_a_key_where_that_was_asked_for(database: Database, database_url: str) -> None:
    app = create_app(Settings(database_url=database_url, redis_url=NOWHERE, insecure_no_auth=True))
    with TestClient(app) as http:
        assert http.get("/jobs").status_code == 200
        assert http.post("/edits", json={}).status_code == 422


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_no_host_that_others_reach_goes_without_keys(host: str) -> None:
    with pytest.raises(ValidationError, match="loopback only"):
        Settings(insecure_no_auth=True, api_host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_host_that_only_this_machine_reaches_may(host: str) -> None:
    assert Settings(insecure_no_auth=True, api_host=host).insecure_no_auth


# While the database is away


def test_while_the_database_is_away_nobody_gets_in_and_all_are_told_to_come_back() -> None:
    nobody = "postgresql://127.0.0.1:1/none"
    app = create_app(Settings(database_url=nobody, redis_url=NOWHERE))
    with TestClient(app, raise_server_exceptions=False) as http:
        assert http.get("/healthz").status_code == 200
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"], ready.json()["database"]) == (503, False, "away")
        for method, path in GUARDED:
            response = http.request(method, path.format(**NAMES), headers=bearer(keys.generate()[0]))
            problem(response, 503, "database_away")
        problem(http.get("/jobs"), 401, "missing_api_key")


def test_a_database_that_is_away_where_no_key_is_asked_for_is_told_too() -> None:
    settings = Settings(
        database_url="postgresql://127.0.0.1:1/none", redis_url=NOWHERE, insecure_no_auth=True
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as http:
        problem(http.get("/jobs"), 503, "database_away")
        problem(http.get(f"/jobs/{NAMES['job']}"), 503, "database_away")
        problem(http.post("/predict", json={"model": "toy", "prompt": "x"}), 503, "database_away")
