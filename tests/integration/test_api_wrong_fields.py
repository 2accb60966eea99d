"""A field that is wrong is pointed at, and nothing is stored."""

from typing import Any

import pytest

from tests.support.api import Api, counts, pointers, problem
from tests.support.right_calls import ALIAS, EDITS, FRANCE, RELATION, REVERT

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
