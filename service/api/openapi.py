"""The OpenAPI document: beside what FastAPI knows, how each call refuses."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.constants import REF_TEMPLATE

from service.api.problems import MEDIA_TYPE, Problem

Json = dict[str, Any]

MEANINGS = {
    "400": "The body is no strict JSON.",
    "401": "No valid key was sent.",
    "403": "The key lacks the scope for it.",
    "404": "What is named is not there; `nearest` has names that are, if there are any like it.",
    "409": "It conflicts with the present state.",
    "412": "The alias is no longer at that ETag, or is there already.",
    "413": "The body is too large.",
    "415": "The body is no JSON.",
    "422": "Something in the request is not valid; `errors` points at it.",
    "429": "Too many jobs wait; come back after `Retry-After` seconds.",
    "500": "Something broke here, or the version can't answer.",
    "503": "The database or a predictor does not answer; come back after `Retry-After` seconds.",
    "default": "Every refusal has this form.",
}


class Documented(FastAPI):
    """An application whose document tells its refusals."""

    def openapi(self) -> Json:
        if self.openapi_schema is None:
            _tell_refusals(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def _tell_refusals(document: Json) -> None:
    schemas: Json = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form, which we never send
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template=REF_TEMPLATE)
    schemas |= problem.pop("$defs")
    schemas["Problem"] = problem
    content = {MEDIA_TYPE: {"schema": {"$ref": REF_TEMPLATE.format(model="Problem")}}}
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            call["responses"].pop("422", None)
            for status in sorted(_refusals(path, method, call)):
                refusal = {"description": MEANINGS[status], "content": content}
                call["responses"].setdefault(status, refusal)


def _refusals(path: str, method: str, call: Json) -> Iterator[str]:
    """The statuses with which a call may refuse."""
    parameters = {(each["in"], each["name"].lower()) for each in call.get("parameters", ())}
    yield "default"
    if "security" in call:
        yield from ("401", "503")
        if method != "get":
            yield "403"
    if parameters or "requestBody" in call:
        yield "422"
    if "requestBody" in call:
        yield from ("400", "413", "415")
    if "{" in path or "requestBody" in call or ("query", "model") in parameters:
        yield "404"
    if (method != "get" and path != "/predict") or path.endswith("/report"):
        yield "409"
    if ("header", "if-match") in parameters:
        yield "412"
    if "202" in call["responses"]:
        yield "429"
    if path == "/predict":
        yield "500"
