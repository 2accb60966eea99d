"""A body that cannot be read is refused in the one form: never a 500, and nothing is stored."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from service.api.body import MAX_DEPTH
from tests.support.api import Api, add_key, bearer, counts, pointers, problem
from tests.support.right_calls import ALIAS, CANCEL, EDITS, FRANCE, JSON, REVERT

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
