"""The OpenAPI document is right, and whatever it allows or forbids, no call breaks on it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from service.api.schemas.common import Body
from service.database import Database
from tests.support.api import Api, add_key, bearer, model_of, problem, refused_version, serve

ROOT = Path(__file__).parents[2]
EXAMPLES_A_CALL = 5


@pytest.fixture
def api(database: Database, database_url: str) -> Iterator[Api]:
    with serve(database, database_url, long_poll_max_seconds=0.1) as running:
        yield running


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, said)
        for path, calls in document["paths"].items()
        for method, said in calls.items()
    ]


def bodies() -> dict[str, type[BaseModel]]:
    """Every model of a request's body by its name."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Body]
    while waiting:
        for model in waiting.pop().__subclasses__():
            found[model.__name__] = model
            waiting.append(model)
    return found


def body_names(said: dict[str, Any]) -> list[str]:
    """The names of the models that a call takes as its body."""
    schema = said["requestBody"]["content"]["application/json"]["schema"]
    choices = [schema, *schema.get("anyOf", [])]
    return [choice["$ref"].rpartition("/")[2] for choice in choices if "$ref" in choice]


# The document


def test_every_call_says_what_it_is_for(api: Api) -> None:
    found = operations(api.app.openapi())
    assert len(found) > 20
    assert [(method, path) for method, path, said in found if not said.get("summary")] == []
    summaries = [said["summary"] for _, _, said in found]
    assert len(set(summaries)) == len(summaries)


def test_every_call_has_an_id_of_its_own_and_a_chapter(api: Api) -> None:
    found = operations(api.app.openapi())
    assert len({said["operationId"] for _, _, said in found}) == len(found)
    assert all(len(said["tags"]) == 1 for _, _, said in found)


def test_every_body_has_an_example_that_its_own_model_takes(api: Api) -> None:
    document = api.app.openapi()
    models = bodies()
    seen = []
    for method, path, said in operations(document):
        if "requestBody" not in said:
            continue
        (name,) = body_names(said)
        examples = document["components"]["schemas"][name].get("examples", [])
        assert examples, (method, path, name)
        for example in examples:
            models[name].model_validate(example)
        seen.append((method, path))
    assert seen == [
        ("POST", "/edits"),
        ("POST", "/jobs/{job}/revert"),
        ("POST", "/predict"),
        ("PUT", "/models/{model}/aliases/{alias}"),
        ("POST", "/models/{model}/rollback"),
        ("POST", "/relations"),
        ("POST", "/probes"),
    ]


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        ("/edits", "EditsIn", 202),
        ("/edits?dry_run=true", "EditsIn", 200),
        ("/predict", "PredictIn", 200),
        ("/relations", "RelationIn", 201),
        ("/probes", "ProbesIn", 201),
    ],
)
def test_the_examples_do_what_they_say(api: Api, path: str, name: str, status: int) -> None:
    model_of(api.database, "smollm2")
    for example in api.app.openapi()["components"]["schemas"][name]["examples"]:
        response = api.http.post(path, json=example)
        assert response.status_code == status, response.text


def test_every_call_tells_the_form_of_its_refusals(api: Api) -> None:
    document = api.app.openapi()
    form = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for method, path, said in operations(document):
        refusals = {status: each for status, each in said["responses"].items() if not status.startswith("2")}
        assert refusals.pop("default")["content"] == form, (method, path)
        if path == "/readyz":
            refusals.pop("503")  # it says which part is away
        assert all(each["content"] == form and each["description"] for each in refusals.values()), path
    assert document["components"]["schemas"].keys() >= {"Problem", "FieldError", "OpenAIError"}
    assert not document["components"]["schemas"].keys() & {"HTTPValidationError", "ValidationError"}


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("get", "/healthz", "200"),
        ("get", "/models", "200 401 422 503"),
        ("post", "/edits", "200 202 400 401 403 404 409 413 415 422 429 503"),
        ("post", "/predict", "200 400 401 403 404 413 415 422 500 503"),
        ("delete", "/models/{model}/aliases/{alias}", "204 401 403 404 409 412 422 503"),
    ],
)
def test_a_call_tells_the_refusals_that_can_occur(api: Api, method: str, path: str, statuses: str) -> None:
    told = api.app.openapi()["paths"][path][method]["responses"]
    assert told.keys() == {*statuses.split(), "default"}


def test_only_the_health_needs_no_key(api: Api) -> None:
    found = operations(api.app.openapi())
    assert [path for _, path, said in found if "security" not in said] == ["/healthz", "/readyz"]


def test_the_api_never_loads_torch() -> None:
    code = (
        "import sys, service.api.app; "
        "print([m for m in ('torch', 'transformers', 'safetensors', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Whatever is sent


@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"]
)
def test_nothing_that_the_document_allows_or_forbids_breaks_a_call(api: Api, mode: GenerationMode) -> None:
    """Each call a few times, half of them of what is really there."""
    names = names_there(api)
    headers = bearer(add_key(api.database, ["admin"]))
    schema = schemathesis.openapi.from_dict(api.app.openapi())
    called = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.headers):
            continue

        @settings(
            max_examples=EXAMPLES_A_CALL,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), there=st.booleans())
        def call(case: schemathesis.Case[Any], there: bool) -> None:
            nonlocal called
            called += 1
            send(api.http, case, names if there else {}, headers)

        call()
    assert called > 40


def names_there(api: Api) -> dict[str, str]:
    """What really is there, by the names of the parameters. The job has ended: nobody waits for it."""
    model = model_of(api.database)
    version = refused_version(api.database, model)
    assert version.job_id is not None
    return {
        "model": model.name,
        "version": version.id,
        "job": version.job_id,
        "alias": "mine",
        "name": "capital",
    }


def send(
    http: TestClient, case: schemathesis.Case[Any], names: dict[str, str], headers: dict[str, str]
) -> None:
    case.path_parameters = {name: names.get(name, value) for name, value in case.path_parameters.items()}
    if isinstance(case.body, dict) and "model" in case.body and "model" in names:
        case.body["model"] = names["model"]
    raw = case.as_transport_kwargs(base_url="http://testserver")
    response = http.request(
        raw["method"],
        raw["url"],
        params=raw.get("params"),
        json=raw.get("json"),
        content=raw.get("data"),
        headers={**raw["headers"], **headers},
    )
    shown = f"{case.as_curl_command()}\n{response.status_code} {response.text[:500]}"
    assert response.status_code < 500, shown
    if response.status_code >= 400:
        problem(response, response.status_code)
        assert str(response.status_code) in case.operation.definition.raw["responses"], shown
