"""The API over the test's own database, with a predictor of paper behind it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import literal, select, text, union_all

from service import aliases, jobs, keys, leases, versions
from service.api.app import create_app
from service.api.problems import Problem
from service.database import Database
from service.ids import new_id
from service.leases import Claim
from service.predictor_client import PredictorClient
from service.settings import Settings
from service.tables import Base, Job, Model, Version
from service.versions import Candidate
from tests.support.records import add_job, add_model

PREDICTOR = "http://predictor"
PROBLEM = "application/problem+json"
MEMBERS = {"type", "title", "status", "detail", "code", "request_id", "errors", "error"}
NOWHERE = "redis://127.0.0.1:1/0"
"""An address at which nobody listens."""
ALIASES = "/models/toy/aliases"
PRODUCTION = f"{ALIASES}/production"
MINE = f"{ALIASES}/mine"

Said = tuple[int, Any, dict[str, str]]
"""Status, JSON, headers."""


@dataclass
class PaperPredictor:
    """Speaks the predictor's protocol. Says `words[prompt]`, or else which weights it was asked of."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    warmed: list[tuple[str, str | None]] = field(default_factory=list)
    """Digests of the root and overlay that were to be read ahead."""
    words: dict[str, str] = field(default_factory=dict)
    instead: Said | None = None
    """What it says to every question, whatever it is."""
    dead: set[str] = field(default_factory=set)
    """Hosts that take no connection."""
    broken: Exception | None = None
    may_ask: bool = True
    """Whether the token that it is sent is its own."""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host in self.dead:
            raise httpx2.ConnectError("nobody there", request=request)
        if self.broken is not None:
            raise self.broken
        if request.url.path == "/readyz":
            return httpx2.Response(200, json={"ready": True, "may_ask": self.may_ask})
        question = json.loads(request.content)
        if request.url.path == "/warm":
            self.warmed.append((question["root_digest"], question["overlay_digest"]))
            return httpx2.Response(200, json={"roots": []})
        self.asked.append({**question, "host": request.url.host})
        if self.instead is not None:
            status, body, headers = self.instead
            return httpx2.Response(status, json=body, headers=headers)
        return httpx2.Response(
            200, json={"answers": [self._answer(question, i) for i in range(len(question["prompts"]))]}
        )

    def refuse(
        self, status: int, code: str, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        self.instead = (status, {"code": code, "message": f"It is {code}.", **members}, dict(headers or {}))

    def _answer(self, question: Mapping[str, Any], place: int) -> dict[str, Any]:
        whose = question["overlay_digest"] or question["root_digest"]
        return {
            "text": self.words.get(question["prompts"][place], f" {whose}"),
            "n_tokens": 1,
            "stopped": True,
            "top_k": [{"token": " x", "probability": 0.5}] * question["top_k"] if question["top_k"] else None,
            "candidates": [
                {"text": name, "log_probability": -1.0, "probability": 0.5} for name in question["candidates"]
            ]
            if question["candidates"]
            else None,
        }


@dataclass(frozen=True)
class Api:
    """A running API. `http` sends the key of `scopes` that it was served with."""

    http: TestClient
    predictor: PaperPredictor
    database: Database
    app: FastAPI


@contextmanager
def serve(
    database: Database,
    database_url: str,
    redis_url: str = NOWHERE,
    *,
    scopes: Sequence[str] = ("admin",),
    predictor_urls: Sequence[str] = (PREDICTOR,),
    **settings: Any,
) -> Iterator[Api]:
    """The API with a key of `scopes`; whatever breaks in it is a 500, not the test's own exception."""
    secret = add_key(database, scopes)
    chosen = Settings(
        database_url=database_url, redis_url=redis_url, predictor_urls=list(predictor_urls), **settings
    )
    app = create_app(chosen)
    paper = PaperPredictor()
    client = PredictorClient(chosen, transport=httpx2.MockTransport(paper))
    app.state.parts = replace(app.state.parts, predictor=client)
    with TestClient(app, raise_server_exceptions=False, headers=bearer(secret)) as http:
        yield Api(http, paper, database, app)


def api_without_redis(database: Database, database_url: str) -> Iterator[Api]:
    """A fixture `api` where nothing needs Redis: there is none."""
    with serve(database, database_url, NOWHERE) as running:
        yield running


def add_key(database: Database, scopes: Sequence[str], *, revoked: bool = False) -> str:
    """A new key's secret."""
    with database.transaction() as s:
        row, secret = keys.create(s, "test", scopes)
        if revoked:
            keys.revoke(s, row.id)
    return secret


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def problem(response: httpx2.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The refusal's members, once it has shown to be one in the form that every refusal has."""
    shown = f"{response.status_code} {response.text[:1000]}"
    assert response.status_code == status, shown
    assert response.headers["content-type"] == PROBLEM, shown
    said: dict[str, Any] = response.json()
    assert said.keys() >= MEMBERS, shown
    Problem.model_validate(said, strict=True)
    assert said["status"] == status, shown
    assert said["type"] == f"urn:factedit:problem:{said['code']}", shown
    assert said["title"] and said["detail"], shown
    assert said["request_id"].startswith("req_"), shown
    assert response.headers["x-request-id"] == said["request_id"], shown
    for entry in said["errors"]:
        assert entry.keys() >= {"pointer", "code", "message"}, shown
    assert said["error"].keys() == {"message", "type", "code", "param"}, shown
    assert (said["error"]["message"], said["error"]["code"]) == (said["detail"], said["code"]), shown
    if status in (429, 503):
        assert int(response.headers["retry-after"]) > 0, shown
    if code is not None:
        assert said["code"] == code, shown
    return said


def pointers(said: Mapping[str, Any]) -> list[str | None]:
    """Where a refusal says that something is wrong."""
    return [entry["pointer"] for entry in said["errors"]]


def counts(database: Database) -> dict[str, int]:
    """How many rows each table has."""
    each = [select(literal(name), literal(1)).select_from(t) for name, t in Base.metadata.tables.items()]
    found = dict.fromkeys(Base.metadata.tables, 0)
    with database.transaction() as s:
        for name, _ in s.execute(union_all(*each)):
            found[name] += 1
    return found


def model_of(database: Database, name: str = "toy") -> Model:
    with database.transaction() as s:
        return add_model(s, name)


def claimed(database: Database, stage: str = "edit") -> Claim:
    with database.transaction() as s:
        claim = leases.claim(s, stage, "w", 60)  # type: ignore[arg-type]
    assert claim is not None
    return claim


def candidate_of(
    database: Database, claim: Claim, digest: str = "a" * 64, ledger: Sequence[str] = ()
) -> Version:
    """The claim's candidate, published, with these edits in force."""
    manifest = {"method": {"name": "auto"}, "ledger": list(ledger)}
    with database.transaction() as s:
        version = versions.publish_candidate(
            s, claim, Candidate(new_id("ver"), digest, 10, manifest, {"efficacy": 1.0}, ledger)
        )
    assert version is not None
    return version


def promoted_version(
    database: Database,
    model: Model,
    digest: str = "a" * 64,
    edits: Sequence[dict[str, Any]] | None = None,
    ledger: Sequence[str] = (),
) -> Version:
    """A version that came to production through a job: the whole road, without any weights."""
    with database.transaction() as s:
        job = add_job(s, model, edits)
        own = [row.id for row in jobs.edits_of(s, job.id)]
    version = candidate_of(database, claimed(database), digest, [*ledger, *own])
    scoring = claimed(database, "score")
    with database.transaction() as s:
        assert aliases.promote(s, scoring, actor="gate")
        assert leases.succeed(s, scoring, promoted=True)
    return version


def refused_version(database: Database, model: Model, digest: str = "b" * 64) -> Version:
    """A version that the gate refused."""
    with database.transaction() as s:
        add_job(s, model)
    version = candidate_of(database, claimed(database), digest)
    scoring = claimed(database, "score")
    with database.transaction() as s:
        assert leases.fail(s, scoring, "regression_gate", "Too many facts were lost.")
    return version


def state_of(database: Database, version_id: str) -> str:
    with database.transaction() as s:
        return s.get_one(Version, version_id).state


def job_row(database: Database, job_id: str) -> Job:
    with database.transaction() as s:
        return jobs.get(s, job_id)


def production_of(database: Database, model: Model) -> str:
    with database.transaction() as s:
        return versions.resolve(s, model.name)[1].id


def wait_until_somebody_waits(database: Database) -> None:
    """Until a transaction stands before a lock of another."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with database.transaction() as s:
            if s.scalar(text("select count(*) from pg_locks where not granted")):
                return
        time.sleep(0.02)
    raise AssertionError("Nobody waits for a lock.")
