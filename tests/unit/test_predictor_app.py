"""The predictor's HTTP face, over an engine of paper."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.types import Message

from workers.predictor.app import TIMEOUT_HEADER, create_app
from workers.predictor.batcher import Batcher
from workers.predictor.errors import Corrupt, Missing
from workers.predictor.questions import Answer, Asked, Candidate, Token, Weights
from workers.predictor.room import Room
from workers.predictor.shelf import Shelf

ROOT, OVERLAY, FLIPPED, UNKNOWN = ("0" * 64, "1" * 64, "2" * 64, "3" * 64)


@dataclass(frozen=True)
class Paper:
    weights: Weights
    n_bytes: int = 0


class PaperEngine:
    """Says which weights it was asked with; "wait" waits until `released`."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked: list[str] = []

    def load(self, weights: Weights) -> Paper:
        if weights.overlay_digest == FLIPPED:
            raise Corrupt(FLIPPED, "The overlay's bytes do not match its digest.")
        if weights.overlay_digest == UNKNOWN:
            raise Missing(UNKNOWN, "The store has no such overlay.")
        return Paper(weights)

    def turn(
        self, loaded: Paper, joining: Sequence[Asked], leaving: Sequence[Asked]
    ) -> list[tuple[Asked, Answer]]:
        answers = []
        for asked in joining:
            question = asked.question
            self.asked.append(question.prompt)
            if question.prompt == "wait":
                assert self.released.wait(10)
            if question.prompt == "explode":
                raise RuntimeError("a secret of the inside")
            answer = Answer(
                text=f"{loaded.weights.overlay_digest}",
                n_tokens=asked.max_tokens,
                stopped=True,
                top_k=(Token("x", 0.5),) * question.top_k if question.top_k else None,
                candidates=tuple(Candidate(name, -1.0, 0.5) for name in question.candidates)
                if question.candidates
                else None,
            )
            answers.append((asked, answer))
        return answers


def app_over(engine: PaperEngine, token: str = "") -> Starlette:
    return create_app(
        lambda: Batcher(engine, Shelf(max_items=4, max_bytes=4), max_batch=4, room=Room(prompts=8, ranked=8)),
        roots=lambda: [ROOT],
        on_lost=lambda: None,
        token=token,
        max_body_bytes=1000,
    )


@contextmanager
def predictor(token: str = "") -> Iterator[TestClient]:
    engine = PaperEngine()
    try:
        with TestClient(app_over(engine, token), raise_server_exceptions=False) as client:
            yield client
    finally:
        engine.released.set()


def body(*prompts: str, overlay: str | None = None, **more: Any) -> dict[str, Any]:
    return {"root_digest": ROOT, "overlay_digest": overlay, "prompts": prompts, "max_tokens": 3, **more}


def test_an_answer_has_all_that_was_asked_for_and_nothing_else() -> None:
    with predictor() as client:
        plain = client.post("/predict", json=body("a", overlay=OVERLAY)).json()
        full = client.post("/predict", json=body("a", "b", top_k=2, candidates=["x", "y"])).json()
    assert plain["answers"] == [
        {"text": OVERLAY, "n_tokens": 3, "stopped": True, "top_k": None, "candidates": None}
    ]
    assert plain["seconds"] >= 0
    assert [len(answer["top_k"]) for answer in full["answers"]] == [2, 2]
    assert [[c["text"] for c in answer["candidates"]] for answer in full["answers"]] == [["x", "y"]] * 2
    assert full["answers"][0]["candidates"][0] == {"text": "x", "log_probability": -1.0, "probability": 0.5}


@pytest.mark.parametrize(
    ("overlay", "status", "code"),
    [(FLIPPED, 410, "corrupt_checkpoint"), (UNKNOWN, 404, "missing_checkpoint")],
)
def test_weights_that_cannot_be_had_are_named_and_no_others_answer(
    overlay: str, status: int, code: str
) -> None:
    with predictor() as client:
        response = client.post("/predict", json=body("a", overlay=overlay))
    assert response.status_code == status
    assert response.json()["code"] == code
    assert response.json()["digest"] == overlay


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b"{",
        b'{"root_digest": NaN}',
        b"\xff",
        {**body("a"), "root_digest": "../../etc/passwd"},
        {**body("a"), "overlay_digest": "A" * 64},
        {**body("a"), "prompts": []},
        {**body("a"), "prompts": [1]},
        {**body("a"), "max_tokens": -1},
        {**body("a"), "max_tokens": True},
        {**body("a"), "top_k": 0},
        {**body("a"), "candidates": [["x"]]},
        {**body("a"), "candidates": ["x"] * 9},
        {**body("a"), "candidates": []},
        {**body("a"), "path": "/"},
        body(*"123456789"),
    ],
)
def test_a_bad_request_is_answered_422_with_what_is_wrong(wrong: bytes | dict[str, Any]) -> None:
    with predictor() as client:
        if isinstance(wrong, bytes):
            response = client.post("/predict", content=wrong)
        else:
            response = client.post("/predict", json=wrong)
    assert response.status_code == 422
    assert response.json()["code"] == "bad_request"
    assert response.json()["message"]


def test_a_body_over_the_limit_is_refused() -> None:
    with predictor() as client:
        response = client.post("/predict", json=body("a" * 2000))
    assert response.status_code == 413


def test_an_error_inside_is_told_without_its_insides() -> None:
    with predictor() as client:
        response = client.post("/predict", json=body("explode"))
        assert client.post("/predict", json=body("a")).status_code == 200
    assert response.status_code == 500
    assert response.json()["code"] == "internal"
    assert "secret" not in response.text


def test_when_the_clients_time_is_up_it_is_told_to_come_back() -> None:
    with predictor() as client:
        response = client.post("/predict", json=body("wait"), headers={TIMEOUT_HEADER: "0.05"})
    assert response.status_code == 503
    assert response.json()["code"] == "overloaded"
    assert int(response.headers["Retry-After"]) >= 1


def test_what_a_client_that_hung_up_had_asked_is_not_computed() -> None:
    engine = PaperEngine()
    app = app_over(engine)

    async def post(prompt: str, *, hang_up: bool) -> int:
        """Post to /predict as a server would; the answer's status."""
        raw = json.dumps(body(prompt)).encode()
        received: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if received:
                return received.pop()
            await asyncio.sleep(0 if hang_up else 60)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
        await app(scope, receive, send)
        return int(sent[0]["status"])

    async def run() -> list[int]:
        async with app.router.lifespan_context(app):
            busy = asyncio.create_task(post("wait", hang_up=False))
            while engine.asked != ["wait"]:
                await asyncio.sleep(0.001)
            hung_up = await post("hung up", hang_up=True)
            still_there = asyncio.create_task(post("still there", hang_up=False))
            engine.released.set()
            return [await busy, hung_up, await still_there]

    assert asyncio.run(asyncio.wait_for(run(), 10)) == [200, 499, 200]
    assert engine.asked == ["wait", "still there"]


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf", "601"])
def test_a_timeout_that_is_no_time_is_a_bad_request(seconds: str) -> None:
    with predictor() as client:
        response = client.post("/predict", json=body("a"), headers={TIMEOUT_HEADER: seconds})
    assert response.status_code == 422


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", "Basic right", "Bearer rïght"])
def test_only_those_who_know_the_token_may_ask(authorization: str | None) -> None:
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    with predictor(token="right") as client:
        for path in ("/predict", "/warm"):
            response = client.post(path, json=body("a"), headers=headers)
            assert response.status_code == 401
            assert response.json()["code"] == "unauthorized"
        right = client.post("/predict", json=body("a"), headers={"Authorization": "Bearer right"})
        assert right.status_code == 200


def test_liveness_and_readiness_need_no_token() -> None:
    with predictor(token="right") as client:
        assert client.get("/healthz").status_code == 200
        ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "roots": [ROOT], "may_ask": False}


@pytest.mark.parametrize(("token", "sent"), [("right", "right"), ("", "any"), ("", None)])
def test_readiness_says_who_may_ask(token: str, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
    with predictor(token=token) as client:
        assert client.get("/readyz", headers=headers).json()["may_ask"]


def test_warming_answers_with_the_roots_in_memory() -> None:
    with predictor() as client:
        assert client.post("/warm", json={"root_digest": ROOT}).json() == {"roots": [ROOT]}
        assert client.post("/warm", json={"root_digest": "short"}).status_code == 422
