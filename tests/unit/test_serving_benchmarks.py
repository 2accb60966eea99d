"""What the serving benchmarks measure with: the clients, the bare model, the plain server, the tables."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from benchmarks import bare_model, plain_server, predict_throughput
from benchmarks.many_versions import Rollback
from benchmarks.predict_throughput import report
from benchmarks.serving import Asked, ask, fresh_prompts
from factedit.generation import generate
from factedit.models import LanguageModel
from workers.stack.redis import free_port

PROMPTS = ["The capital of France is", "Italy", "The capital of Japan is"]


@contextmanager
def listening(app: Starlette) -> Iterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_clients_ask_every_prompt_once_of_the_models_in_turn_and_count_what_failed() -> None:
    seen: list[tuple[str, str]] = []

    async def predict(request: Request) -> Response:
        body = json.loads(await request.body())
        seen.append((body["model"], body["prompt"]))
        status = 503 if body["prompt"] == "7" else 200
        return JSONResponse({"model_version": body["model"]}, status_code=status)

    with listening(Starlette(routes=[Route("/predict", predict, methods=["POST"])])) as url:
        asked = ask(url, [str(i) for i in range(20)], 4, 3, models=("a", "b"))
    assert sorted(int(prompt) for _, prompt in seen) == list(range(20))
    assert {model for model, _ in seen} == {"a", "b"}
    assert len(asked.answers) == 19
    assert len(asked.failures) == 1 and asked.failures[0].startswith("503")
    assert asked.rate == pytest.approx(19 / asked.seconds)


def test_no_prompt_comes_twice() -> None:
    prompts = list(islice(fresh_prompts(), 1000))
    assert len(set(prompts)) == 1000
    assert prompts == list(islice(fresh_prompts(), 1000))


@pytest.mark.parametrize("way", [bare_model.generated, bare_model.decoded])
def test_the_bare_model_is_timed_batch_by_batch(
    toy: LanguageModel, way: Callable[[LanguageModel, Sequence[str], int], None]
) -> None:
    batches: list[Sequence[str]] = []

    def answer(prompts: Sequence[str]) -> None:
        batches.append(prompts)
        way(toy, prompts, 3)

    seconds = bare_model.timed(answer, PROMPTS, 2)
    assert len(seconds) == 2 and min(seconds) > 0
    assert batches[1:3] == [PROMPTS[:2], PROMPTS[2:]]


def test_the_plain_server_answers_as_the_model_does(toy_folder: Path, toy: LanguageModel) -> None:
    with TestClient(plain_server.create_app(str(toy_folder))) as client:
        answer = client.post("/predict", json={"prompt": PROMPTS[0], "max_tokens": 4}).json()["text"]
    assert answer.strip() == generate(toy, PROMPTS[:1], 4)[0].text.strip()


def test_the_tables_hold_the_ratios() -> None:
    # One client at two answers a second; the long last one came when there was nothing more to ask.
    many = Asked([(i / 2, i / 2 + 0.5, "") for i in range(99)] + [(49.5, 60.0, "")])
    one = Asked([(0.0, 0.1, "")] * 3)
    text = report(
        1,
        many,
        {"generate": [1.0, 1.5]},
        Asked([(0.0, 10.0, "")] * 50),
        one,
        {"generate": [0.08, 0.09, 0.095]},
        Asked([(0.0, 0.004, "")] * 3),
    )
    assert "| bare model, generate | 40.0 | 0.05 |" in text
    assert "| FastAPI and a pipeline | 5.0 | 0.40 |" in text
    assert "| bare model, generate | 90.0 | 10.0 |" in text
    assert "| the service, the same again | 4.0 |" in text


def test_a_rollback_is_judged_by_what_the_clients_saw() -> None:
    answers = [(0.0, 1.0, "old"), (1.0, 2.1, "old"), (2.05, 3.5, "old"), (2.2, 2.5, "new"), (2.5, 2.9, "new")]
    rollback = Rollback("new", called=2.0, returned=2.2, asked=Asked(answers))
    assert rollback.first_answer == pytest.approx(0.3)
    assert rollback.first_asked_after == pytest.approx(0.3)
    assert rollback.usual == pytest.approx(1.0)
    assert rollback.slowest == pytest.approx(1.45)


def test_what_never_gets_ready_is_told() -> None:
    class Ended:
        def poll(self) -> int:
            return 1

    with pytest.raises(RuntimeError, match="nothing answers"):
        predict_throughput.until_ready("http://127.0.0.1:1", Ended())  # type: ignore[arg-type]
