"""Whatever is sent, the answer is a refusal in the one form: never a 500, and nothing is stored."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.api.body import MAX_DEPTH
from service.database import Database
from service.ids import new_id
from tests.support.api import Api, add_key, bearer, counts, model_of, pointers, problem, serve

JSON = {"Content-Type": "application/json"}
FRANCE = {"subject": "France", "relation": "capital", "new_object": "Rome"}
EDITS = {"model": "toy", "edits": [FRANCE]}
RELATION = {"name": "mascot", "training_templates": ["The mascot of {subject} is"]}
PROBE = {"model": "toy", "probes": [{"prompt": "Water boils at", "object": "100"}]}
ALIAS = "/models/toy/aliases/mine"
CANCEL = f"/jobs/{new_id('job')}/cancel"
REVERT = f"/jobs/{new_id('job')}/revert"

WITH_BODY = [
    ("POST", "/edits"),
    ("POST", "/edits?dry_run=true"),
    ("POST", "/predict"),
    ("POST", "/relations"),
    ("POST", "/probes"),
    ("PUT", ALIAS),
    ("POST", "/models/toy/rollback"),
    ("POST", REVERT),
]
WITHOUT_BODY = [("POST", CANCEL)]
TEN_MEGABYTES = b'{"x": "' + b"a" * 10_000_000 + b'"}'

# What is no strict JSON, wherever it is sent: body, status, code, pointer of the entry.
NOT_STRICT: dict[str, tuple[bytes, int, str, str]] = {
    "NUL": (b'{"x": {"y": ["a", "b\\u0000"]}}', 422, "invalid_text", "/x/y/1"),
    "NUL in a key": (b'{"x": {"\\u0000": 1}}', 422, "invalid_text", "/x"),
    "the first half of a surrogate pair": (b'{"x": "\\ud800"}', 422, "invalid_text", "/x"),
    "the second half of one": (b'{"x": "\\udc00 "}', 422, "invalid_text", "/x"),
    "half of one in a key": (b'{"\\ud800": 1}', 422, "invalid_text", ""),
    "NaN": (b'{"x": NaN}', 422, "invalid_number", "/x"),
    "Infinity": (b'{"x": [Infinity]}', 422, "invalid_number", "/x/0"),
    "-Infinity": (b'{"x": -Infinity}', 422, "invalid_number", "/x"),
    "1e999": (b'{"x": 1e999}', 422, "invalid_number", "/x"),
    "an integer of 5000 digits": (b'{"x": ' + b"9" * 5000 + b"}", 422, "invalid_number", "/x"),
    "a negative one": (b'{"x": -' + b"9" * 5000 + b"}", 422, "invalid_number", "/x"),
    "an array 100,000 deep": (b"[" * 100_000 + b"]" * 100_000, 400, "too_deep", ""),
    "objects 100,000 deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, "too_deep", ""),
    "one level too deep": (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), 400, "too_deep", ""),
    "an array 100,000 deep and no end": (b"[" * 100_000, 400, "too_deep", ""),
    "a doubled key": (b'{"model": "toy", "model": "toy"}', 400, "duplicate_key", ""),
    "a doubled key far inside": (b'{"x": [{"a": 1, "a": 1}]}', 400, "duplicate_key", ""),
    "a doubled key of half a pair": (b'{"\\ud800": 1, "\\ud800": 1}', 400, "duplicate_key", ""),
    "bad UTF-8": (b'{"x": "\xff"}', 400, "invalid_encoding", ""),
    "a surrogate in UTF-8": (b'{"x": "\xed\xa0\x80"}', 400, "invalid_encoding", ""),
    "UTF-16": ('{"x": 1}'.encode("utf-16"), 400, "invalid_encoding", ""),
    "a byte order mark": (b"\xef\xbb\xbf{}", 400, "invalid_json", ""),
    "half an object": (b'{"x": ', 400, "invalid_json", ""),
    "words": (b"hello", 400, "invalid_json", ""),
    "two values": (b"{} {}", 400, "invalid_json", ""),
    "a raw control character": (b'{"x": "\x01"}', 400, "invalid_json", ""),
    "a lone backslash": (b'{"x": "\\"}', 400, "invalid_json", ""),
    "only spaces": (b"   ", 400, "invalid_json", ""),
}


@pytest.fixture
def api(database: Database, database_url: str, redis_url: str) -> Iterator[Api]:
    model_of(database)
    with serve(database, database_url, redis_url) as running:
        yield running


# What is no strict JSON


@pytest.mark.parametrize("name", NOT_STRICT)
def test_no_call_takes_what_is_not_strict_json(api: Api, name: str) -> None:
    raw, status, code, pointer = NOT_STRICT[name]
    before = counts(api.database)
    for method, path in WITH_BODY:
        said = problem(api.http.request(method, path, content=raw, headers=JSON), status, code)
        assert pointers(said) == [pointer], path
    for method, path in WITHOUT_BODY:
        problem(api.http.request(method, path, content=raw, headers=JSON), 404)
    assert counts(api.database) == before


@pytest.mark.parametrize("raw", [b"[]", b"0", b'"text"', b"true", b"[{}]"])
def test_a_body_that_is_no_object_is_refused(api: Api, raw: bytes) -> None:
    before = counts(api.database)
    for method, path in WITH_BODY:
        said = problem(api.http.request(method, path, content=raw, headers=JSON), 422, "invalid_request")
        assert pointers(said) == [""], path
    assert counts(api.database) == before


@pytest.mark.parametrize("raw", [b"", b"null"])
def test_a_body_that_is_missing_is_refused(api: Api, raw: bytes) -> None:
    before = counts(api.database)
    for method, path in WITH_BODY:
        if path.endswith(("/rollback", "/revert")):  # they need none
            continue
        said = problem(api.http.request(method, path, content=raw, headers=JSON), 422, "invalid_request")
        assert pointers(said) == [""], path
        assert "object" in said["detail"], path
    assert counts(api.database) == before


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
)
def test_a_body_of_another_kind_is_refused(api: Api, kind: str) -> None:
    before = counts(api.database)
    headers = {"Content-Type": kind} if kind else {}
    for method, path in WITH_BODY + WITHOUT_BODY:
        response = api.http.request(method, path, content=b'{"model": "toy"}', headers=headers)
        problem(response, 415, "unsupported_media_type")
    assert counts(api.database) == before


def test_json_may_be_named_with_a_charset_or_a_profile(api: Api) -> None:
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/hal+json"):
        headers = {"Content-Type": kind}
        assert api.http.post("/edits", content=b"{", headers=headers).status_code == 400


# What is too large


def test_a_body_that_says_it_is_too_large_is_refused_unread(api: Api) -> None:
    before = counts(api.database)
    for method, path in WITH_BODY + WITHOUT_BODY:
        response = api.http.request(method, path, content=TEN_MEGABYTES, headers=JSON)
        problem(response, 413, "content_too_large")
    assert counts(api.database) == before


def test_a_body_that_does_not_say_its_length_is_refused_by_the_same_code(api: Api) -> None:
    before = counts(api.database)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(TEN_MEGABYTES), 1_000_000):
            yield TEN_MEGABYTES[start : start + 1_000_000]

    for method, path in WITH_BODY + WITHOUT_BODY:
        request = api.http.build_request(method, path, content=chunks(), headers=JSON)
        assert "content-length" not in request.headers
        problem(api.http.send(request), 413, "content_too_large")
    assert counts(api.database) == before


def test_a_size_is_refused_before_the_key_is_looked_at(api: Api) -> None:
    headers = {**JSON, "Authorization": "Bearer wrong"}
    response = api.http.post("/edits", content=TEN_MEGABYTES, headers=headers)
    problem(response, 413, "content_too_large")


# What is large, and wrong all over

MANY: list[Any] = [0] * 100_001


@pytest.mark.parametrize(
    ("path", "body", "code", "pointer", "count"),
    [
        ("/edits", {"model": "toy", "edits": MANY}, "invalid_request", "/edits", 1),
        ("/edits", {"model": "toy", "edits": MANY[:-1]}, "invalid_request", "/edits/0", 100),
        ("/probes", {"model": "toy", "probes": MANY[:1000]}, "invalid_request", "/probes/0", 100),
        ("/predict", {"model": "toy", "prompts": MANY}, "invalid_request", "/prompts/0", 1),
        ("/predict", {f"{key}": 1 for key in range(50_000)}, "too_many_keys", "", 1),
        ("/edits", {"model": "toy", "edits": [FRANCE, dict.fromkeys(map(str, range(65)))]},
         "too_many_keys", "/edits/1", 1),
    ],
    ids=["too many", "every edit", "every probe", "every prompt", "keys", "an edit's keys"],
)  # fmt: skip
def test_of_many_faults_only_the_first_are_looked_for(
    api: Api, path: str, body: dict[str, Any], code: str, pointer: str, count: int
) -> None:
    said = problem(api.http.post(path, json=body), 422, code)
    assert (pointers(said)[0], len(said["errors"])) == (pointer, count)


def test_faults_far_down_a_list_are_pointed_at_where_they_stand(api: Api) -> None:
    edits = [FRANCE] * 777
    edits[555] = edits[556] = {**FRANCE, "subject": 5}  # type: ignore[dict-item]
    said = problem(api.http.post("/edits?dry_run=maybe", json={**EDITS, "edits": edits}), 422)
    assert pointers(said) == [None, "/edits/555/subject", "/edits/556/subject"]


def test_a_large_body_is_read_beside_the_event_loop_and_a_small_one_at_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def parse(raw: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return json.loads(raw)

    monkeypatch.setattr("service.api.body.parse", parse)
    for count in (1, 1000):
        problem(api.http.post("/edits", json={**EDITS, "edits": [FRANCE] * count, "seed": -1}), 422)
    assert "AnyIO worker thread" not in threads[0] and "AnyIO worker thread" in threads[1]


def test_a_large_body_is_refused_whom_a_small_one_would_be(api: Api) -> None:
    reader = bearer(add_key(api.database, ["predict"]))
    for count in (1, 1000):
        body = {**EDITS, "edits": [{"subject": 5}] * count}
        problem(api.http.post("/edits", json=body, headers=reader), 403, "missing_scope")


# What is JSON, and wrong

WRONG_FIELDS: dict[str, list[tuple[str, str, dict[str, Any], str]]] = {
    "unknown": [
        ("POST", "/edits", {**EDITS, "path": "/etc/passwd"}, "/path"),
        ("POST", "/edits", {"model": "toy", "edits": [{**FRANCE, "objekt": "x"}]}, "/edits/0/objekt"),
        ("POST", "/edits", {**EDITS, "method": {"nam": "ftm"}}, "/method/nam"),
        ("POST", "/predict", {"model": "toy", "prompt": "x", "temperature": 1}, "/temperature"),
        ("POST", "/relations", {**RELATION, "templates": []}, "/templates"),
        ("POST", "/probes", {"model": "toy", "probes": [{"prompt": "x", "answer": "y"}]}, "/probes/0/answer"),
        ("PUT", ALIAS, {"version": "root", "uri": "s3://x"}, "/uri"),
        ("POST", "/models/toy/rollback", {"version": "root"}, "/version"),
        ("POST", REVERT, {"method": {}}, "/method"),
    ],
    "missing": [
        ("POST", "/edits", {"edits": [FRANCE]}, "/model"),
        ("POST", "/edits", {"model": "toy", "edits": [{"subject": "France"}]}, "/edits/0/new_object"),
        ("POST", "/predict", {"prompt": "x"}, "/model"),
        ("POST", "/relations", {"name": "mascot"}, "/training_templates"),
        ("POST", "/probes", {"model": "toy", "probes": [{"prompt": "x"}]}, "/probes/0/object"),
        ("PUT", ALIAS, {}, "/version"),
    ],
    "of another type": [
        ("POST", "/edits", {**EDITS, "model": 5}, "/model"),
        ("POST", "/edits", {**EDITS, "edits": {}}, "/edits"),
        ("POST", "/edits", {**EDITS, "edits": [[]]}, "/edits/0"),
        ("POST", "/edits", {**EDITS, "seed": "7"}, "/seed"),
        ("POST", "/edits", {**EDITS, "seed": 2**31}, "/seed"),
        ("POST", "/edits", {**EDITS, "seed": -1}, "/seed"),
        ("POST", "/edits", {**EDITS, "seed": 1.5}, "/seed"),
        ("POST", "/edits", {**EDITS, "seed": 10**200}, "/seed"),
        ("POST", "/edits", {**EDITS, "promotion": "never"}, "/promotion"),
        ("POST", "/edits", {**EDITS, "metadata": {"k": 5}}, "/metadata/k"),
        ("POST", "/edits", {**EDITS, "metadata": {str(i): "" for i in range(17)}}, "/metadata"),
        ("POST", "/edits", {**EDITS, "blocks": "middle"}, "/blocks"),
        ("POST", "/edits", {**EDITS, "blocks": [-1]}, "/blocks/0"),
        ("POST", "/edits", {**EDITS, "blocks": []}, "/blocks"),
        ("POST", "/edits", {**EDITS, "blocks": [0, "first"]}, "/blocks/1"),
        ("POST", "/edits", {**EDITS, "method": {"max_steps": 0}}, "/method/max_steps"),
        ("POST", "/edits", {**EDITS, "method": {"name": "auto", "parameters": "all"}}, "/method"),
        ("POST", "/edits", {**EDITS, "method": {"anchors": {"count": -1}}}, "/method/anchors/count"),
        ("POST", "/edits", {**EDITS, "constraint": {"radius": 0}}, "/constraint/radius"),
        ("POST", "/edits", {**EDITS, "constraint": None}, "/constraint"),
        ("POST", "/edits", {**EDITS, "gate": {"margin": 1}}, "/gate/margin"),
        ("POST", "/predict", {"model": "toy", "prompt": ["x"]}, "/prompt"),
        ("POST", "/predict", {"model": "toy", "prompts": "x"}, "/prompts"),
        ("POST", "/predict", {"model": "toy", "prompts": []}, "/prompts"),
        ("POST", "/predict", {"model": "toy", "prompt": "x", "top_k": 0}, "/top_k"),
        ("POST", "/predict", {"model": "toy", "prompt": "x", "max_tokens": 10**9}, "/max_tokens"),
        ("POST", "/predict", {"model": "toy", "prompt": "x", "candidates": []}, "/candidates"),
        ("POST", "/relations", {**RELATION, "training_templates": "x {subject}"}, "/training_templates"),
        ("POST", "/relations", {**RELATION, "training_templates": []}, "/training_templates"),
        ("POST", "/relations", {**RELATION, "name": "a b"}, "/name"),
        ("POST", "/relations", {**RELATION, "name": "../x"}, "/name"),
        ("POST", "/relations", {**RELATION, "name": "mascot\n"}, "/name"),
        ("POST", "/relations", {**RELATION, "name": "m" * 101}, "/name"),
        ("POST", "/relations", {**RELATION, "aliases": ["ok", ""]}, "/aliases/1"),
        ("POST", "/probes", {"model": "toy", "probes": []}, "/probes"),
        ("PUT", ALIAS, {"version": 7}, "/version"),
        ("PUT", ALIAS, {"version": "root", "force": "yes"}, "/force"),
        ("POST", "/models/toy/rollback", {"to": ["root"]}, "/to"),
        ("POST", "/edits", {"model": "toy", "edits": [{**FRANCE, "erase": "yes"}]}, "/edits/0/erase"),
        ("POST", REVERT, {"promotion": "never"}, "/promotion"),
        ("POST", REVERT, {"metadata": {str(i): "" for i in range(17)}}, "/metadata"),
    ],
    "with control characters": [
        (
            "POST",
            "/edits",
            {"model": "toy", "edits": [{**FRANCE, "subject": "Fra\x07nce"}]},
            "/edits/0/subject",
        ),
        ("POST", "/edits", {"model": "toy", "edits": [{**FRANCE, "prompt": "a\x1b[31m"}]}, "/edits/0/prompt"),
        ("POST", "/edits", {"model": "to\ry", "edits": [FRANCE]}, "/model"),
        ("POST", "/predict", {"model": "toy", "prompts": ["ok", "\x85"]}, "/prompts/1"),
        ("POST", "/relations", {**RELATION, "description": "\x7f"}, "/description"),
        (
            "POST",
            "/probes",
            {"model": "toy", "probes": [{"prompt": "a\x01", "object": "b"}]},
            "/probes/0/prompt",
        ),
        ("PUT", ALIAS, {"version": "root", "reason": "a\x08"}, "/reason"),
        ("POST", "/models/toy/rollback", {"reason": "a\x08"}, "/reason"),
        ("POST", REVERT, {"reason": "a\x08"}, "/reason"),
    ],
    "blank": [
        ("POST", "/edits", {**EDITS, "model": ""}, "/model"),
        ("POST", "/edits", {"model": "toy", "edits": [{**FRANCE, "new_object": " "}]}, "/edits/0/new_object"),
        (
            "POST",
            "/edits",
            {"model": "toy", "edits": [{**FRANCE, "subject": "\u3000\n"}]},
            "/edits/0/subject",
        ),
        ("POST", "/predict", {"model": "toy", "prompt": "\t"}, "/prompt"),
        ("POST", "/relations", {**RELATION, "training_templates": [""]}, "/training_templates/0"),
        ("POST", "/probes", {"model": "toy", "probes": [{"prompt": "x", "object": ""}]}, "/probes/0/object"),
        ("PUT", ALIAS, {"version": " "}, "/version"),
        ("POST", "/models/toy/rollback", {"to": ""}, "/to"),
    ],
    "too long": [
        ("POST", "/edits", {"model": "toy", "edits": [{**FRANCE, "subject": "x" * 501}]}, "/edits/0/subject"),
        ("POST", "/predict", {"model": "toy", "prompt": "x" * 10_001}, "/prompt"),
        ("POST", "/predict", {"model": "toy", "prompts": ["x"] * 257}, "/prompts"),
        ("POST", "/models/toy/rollback", {"reason": "x" * 1001}, "/reason"),
    ],
}


@pytest.mark.parametrize("kind", WRONG_FIELDS)
def test_a_wrong_field_is_pointed_at(api: Api, kind: str) -> None:
    before = counts(api.database)
    for method, path, body, pointer in WRONG_FIELDS[kind]:
        said = problem(api.http.request(method, path, json=body), 422)
        assert pointer in pointers(said), (path, body, said["errors"])
    assert api.predictor.asked == []
    assert counts(api.database) == before


@pytest.mark.parametrize(
    ("name", "pointer"),
    [("a/b~c", "/a~1b~0c"), ("edits[0]", "/edits[0]"), ("why (in words)", "/why (in words)"), ("", "/")],
)
def test_a_field_of_a_strange_name_is_pointed_at(api: Api, name: str, pointer: str) -> None:
    said = problem(api.http.post("/edits", json={**EDITS, name: 1}), 422, "invalid_request")
    assert pointers(said) == [pointer]


@pytest.mark.parametrize(
    ("field", "value", "pointer"),
    [
        ("seed", "7", "/seed"),
        ("seed", True, "/seed"),
        ("blocks", ["0"], "/blocks/0"),
        ("method", {"max_steps": "7"}, "/method/max_steps"),
        ("method", {"max_steps": True}, "/method/max_steps"),
        ("method", {"anchors": {"count": "7"}}, "/method/anchors/count"),
        ("constraint", {"radius": "0.5"}, "/constraint/radius"),
        ("gate", {"margin": "0.1"}, "/gate/margin"),
    ],
)
def test_what_only_looks_like_a_number_is_refused(api: Api, field: str, value: Any, pointer: str) -> None:
    said = problem(api.http.post("/edits", json={**EDITS, field: value}), 422, "invalid_request")
    assert pointer in pointers(said)
    assert counts(api.database)["jobs"] == 0


def test_a_thousand_wrong_edits_are_a_hundred_entries(api: Api) -> None:
    body = {"model": "toy", "edits": [{**FRANCE, "new_object": ""}] * 1000}
    said = problem(api.http.post("/edits", json=body), 422, "invalid_request")
    assert len(said["errors"]) == 100 and "and 99 more at least" in said["detail"]


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
