"""The predictor over HTTP: /predict and /warm for the API, /healthz and /readyz for its keeper.

/readyz needs no token; it also says whether the one that was sent is the right one.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from workers.predictor.batcher import Batcher
from workers.predictor.errors import BadQuestion, Overloaded, PredictorError, Unauthorized
from workers.predictor.protocol import (
    PredictRequest,
    PredictResponse,
    WarmRequest,
    error_json,
    parse,
    response_json,
)

TIMEOUT_HEADER = "X-Timeout-Seconds"
"""How long the client will wait for its answer; what it has given up on is not computed."""
DEFAULT_TIMEOUT, LONGEST_TIMEOUT = 60.0, 600.0

log = structlog.get_logger(__name__)

T = TypeVar("T")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _ClientLeft(Exception):
    """Nobody waits for this answer any more."""


def create_app(
    make_batcher: Callable[[], Batcher[Any]],
    *,
    roots: Callable[[], list[str]],
    on_lost: Callable[[], None],
    token: str = "",
    max_body_bytes: int = 8 << 20,
) -> Starlette:
    """The application. `on_lost` is called when nothing can be answered any more in this process."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.batcher = make_batcher()
        serving = asyncio.create_task(app.state.batcher.serve())
        serving.add_done_callback(lambda task: _lost(task, on_lost))
        app.state.serving = serving
        yield
        serving.cancel()

    async def predict(request: Request) -> Response:
        began = time.monotonic()
        asked = parse(PredictRequest, await request.body())
        batcher: Batcher[Any] = request.app.state.batcher
        work = batcher.answer(asked.weights, asked.questions, asked.max_tokens)
        answers = await _while_wanted(request, work)
        body = response_json(PredictResponse(answers=answers, seconds=time.monotonic() - began))
        return Response(body, media_type="application/json")

    async def warm(request: Request) -> Response:
        weights = parse(WarmRequest, await request.body()).weights
        await _while_wanted(request, request.app.state.batcher.warm(weights))
        return JSONResponse({"roots": roots()})

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        ready = not request.app.state.serving.done()
        found = {"ready": ready, "roots": roots(), "may_ask": _knows(request, token)}
        return JSONResponse(found, status_code=200 if ready else 503)

    return Starlette(
        routes=[
            Route("/predict", _for_the_api(predict, token), methods=["POST"]),
            Route("/warm", _for_the_api(warm, token), methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ],
        exception_handlers={PredictorError: _error, _ClientLeft: _nobody},
        lifespan=lifespan,
        max_body_size=max_body_bytes,
    )


def _for_the_api(handler: Handler, token: str) -> Handler:
    """Only whoever knows the shared token may ask; with no token set, anyone who can connect."""

    async def checked(request: Request) -> Response:
        if not _knows(request, token):
            log.warning("wrong_token", path=request.url.path)
            raise Unauthorized(
                "Wrong shared token; FACTEDIT_PREDICTOR_TOKEN must be the same here and in the API."
            )
        return await handler(request)

    return checked


def _knows(request: Request, token: str) -> bool:
    given = request.headers.get("Authorization", "")
    return not token or secrets.compare_digest(given.encode(), f"Bearer {token}".encode())


async def _while_wanted(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves or its time is up."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), timeout=_timeout(request), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise _ClientLeft
        raise Overloaded("The answer was not ready in time; ask again later, or with fewer prompts.")
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timeout(request: Request) -> float:
    raw = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = float(raw) if raw is not None else DEFAULT_TIMEOUT
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise BadQuestion(f"{TIMEOUT_HEADER} is a number of seconds up to {LONGEST_TIMEOUT:g}.")
    return seconds


async def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PredictorError)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Overloaded) else None
    return JSONResponse(error_json(error), status_code=error.status, headers=headers)


async def _nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


def _lost(serving: asyncio.Task[None], on_lost: Callable[[], None]) -> None:
    if not serving.cancelled():
        log.critical("predictor_lost", exc_info=serving.exception())
        on_lost()
