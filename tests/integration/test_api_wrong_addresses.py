"""What stands in the address and in the headers, or is not there, breaks nothing: never a 500."""

from typing import Any

import pytest

from service.ids import new_id
from tests.support.api import Api, counts, problem
from tests.support.right_calls import ALIAS, EDITS

# What stands in the address and in the headers

ROUTES_WITH_NAMES = [
    ("GET", "/models/{}"),
    ("GET", "/models/{}/facts"),
    ("GET", "/models/toy/facts?subject={}"),
    ("GET", "/models/toy/facts?version={}"),
    ("GET", "/models/toy/versions/{}"),
    ("GET", "/models/toy/versions?after={}"),
    ("GET", "/models/toy/aliases/{}"),
    ("PUT", "/models/toy/aliases/{}"),
    ("DELETE", "/models/toy/aliases/{}"),
    ("POST", "/models/{}/rollback"),
    ("GET", "/models/toy/history?alias={}"),
    ("GET", "/relations/{}"),
    ("GET", "/relations?after={}"),
    ("GET", "/probes?model={}"),
    ("GET", "/jobs/{}"),
    ("GET", "/jobs/{}/events"),
    ("GET", "/jobs/{}/report"),
    ("POST", "/jobs/{}/cancel"),
    ("POST", "/jobs/{}/revert"),
    ("GET", "/jobs?model={}"),
]


def test_an_address_with_nul_is_refused(api: Api) -> None:
    before = counts(api.database)
    for method, path in ROUTES_WITH_NAMES:
        json = {"version": "root"} if method == "PUT" else None
        problem(api.http.request(method, path.format("a%00b"), json=json), 422, "invalid_text")
    assert counts(api.database) == before


def test_a_strange_name_in_an_address_breaks_nothing(api: Api) -> None:
    names = ("%ED%A0%80", "%FF", "%zz", "..", "%2e%2e%2fx", "%0a", "a" * 5000, "%F0%9F%98%80", "a@b", "%25s")
    before = counts(api.database)
    for name in names:
        for method, path in ROUTES_WITH_NAMES:
            json = {"version": new_id("ver")} if method == "PUT" else None
            response = api.http.request(method, path.format(name), json=json)
            assert response.status_code < 500, (method, path, name)
            if response.status_code >= 400:
                problem(response, response.status_code)
    assert counts(api.database) == before


WRONG_PARAMETERS = [
    ("/jobs?limit=0", "limit"),
    ("/jobs?limit=101", "limit"),
    ("/jobs?limit=1e2", "limit"),
    ("/jobs?limit=" + "9" * 5000, "limit"),
    ("/jobs?status=done", "status"),
    (f"/jobs?after={'a' * 101}", "after"),
    ("/models?limit=-1", "limit"),
    ("/models/toy/history?after=-1", "after"),
    (f"/models/toy/history?after={2**63}", "after"),
    (f"/jobs/{new_id('job')}/events?after={2**31}", "after"),
    ("/probes", "model"),
    ("/probes?model=toy&source=other", "source"),
]


def test_a_wrong_parameter_is_named(api: Api) -> None:
    for path, param in WRONG_PARAMETERS:
        said = problem(api.http.get(path), 422, "invalid_request")
        assert said["error"]["param"] == param, path
        assert (said["errors"][0]["pointer"], said["errors"][0]["param"]) == (None, param), path


def test_a_dry_run_is_true_or_false(api: Api) -> None:
    before = counts(api.database)
    said = problem(api.http.post("/edits?dry_run=perhaps", json=EDITS), 422, "invalid_request")
    assert said["error"]["param"] == "dry_run"
    assert counts(api.database) == before


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\u00e9"])
def test_a_strange_idempotency_key_is_refused(api: Api, key: str) -> None:
    before = counts(api.database)
    headers = {b"Idempotency-Key": key.encode()}
    said = problem(api.http.post("/edits", json=EDITS, headers=headers), 422, "invalid_request")
    assert said["error"]["param"].lower() == "idempotency-key"
    assert counts(api.database) == before


def test_a_strange_etag_is_refused(api: Api) -> None:
    for etag in ('"x"', "1.5", '"' + "9" * 100 + '"', "\u00b2"):
        headers = {b"If-Match": etag.encode()}
        said = problem(api.http.put(ALIAS, json={"version": "root"}, headers=headers), 422)
        assert said["error"]["param"] == "If-Match"


def test_strange_headers_break_nothing(api: Api) -> None:
    for value in ("wait=x", "wait=-1", "wait=" + "9" * 50, "\u00ff", ";;;", "wait", 'wait="5"'):
        response = api.http.get(f"/jobs/{new_id('job')}", headers={b"Prefer": value.encode("latin-1")})
        problem(response, 404, "job_not_found")
    for value in ("Bearer", "Bearer ", "bearer \u00ff", "Basic YTpi", "", "x" * 5000):
        response = api.http.get("/jobs", headers={b"Authorization": value.encode("latin-1")})
        problem(response, 401)


# What is not there, and what breaks


def test_an_address_that_is_not_there_is_a_refusal_in_the_same_form(api: Api) -> None:
    for path in ("/nowhere", "/edits/", "/models/toy/", "/v9/edits"):
        problem(api.http.get(path), 404, "not_found")


def test_a_method_that_is_not_possible_is_told_which_are(api: Api) -> None:
    for path, allowed in (
        ("/edits", "POST"),
        ("/relations", "GET, POST"),
        ("/models/toy/aliases/mine", "GET, PUT, DELETE"),
        ("/docs", "GET"),
    ):
        response = api.http.patch(path)
        said = problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed and f"possible: {allowed}." in said["detail"]


@pytest.mark.parametrize(
    ("header", "value", "method", "path", "body"),
    [
        ("If-Match", "*x", "PUT", ALIAS, {"version": "root"}),
        ("Last-Event-ID", "x", "GET", f"/jobs/{new_id('job')}/events", None),
        ("Idempotency-Key", "a b", "POST", "/edits", EDITS),
    ],
    ids=["If-Match", "Last-Event-ID", "Idempotency-Key"],
)
def test_a_wrong_header_is_named(
    api: Api, header: str, value: str, method: str, path: str, body: dict[str, Any] | None
) -> None:
    headers = {header: value, "Accept": "text/event-stream"}
    said = problem(api.http.request(method, path, json=body, headers=headers), 422)
    (entry,) = said["errors"]
    assert (entry["pointer"], entry["param"].lower()) == (None, header.lower())


def test_what_breaks_in_here_is_told_without_its_words(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    api.predictor.broken = RuntimeError("a secret of the inside")
    said = problem(api.http.post("/predict", json={"model": "toy", "prompt": "x"}), 500, "internal")
    assert "secret" not in str(said)
    assert said["error"]["type"] == "server_error"
    assert said["request_id"] in "".join(capfd.readouterr())


def test_the_log_of_what_broke_holds_no_key(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    api.predictor.broken = RuntimeError("broken")
    assert api.http.post("/predict", json={"model": "toy", "prompt": "x"}).status_code == 500
    logged = "".join(capfd.readouterr())
    assert "request_broke" in logged
    assert api.http.headers["authorization"].removeprefix("Bearer ") not in logged
