"""The API's side of the predictor's protocol: questions forwarded, its errors in the service's words."""

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import structlog

from service.errors import Invalid, ServiceError, Unavailable
from service.settings import Settings

TIMEOUT_SECONDS = 60.0
MARGIN_SECONDS = 2.0
"""The predictor gives up before we do, so that its own words reach the user."""
WARM_SECONDS = 5.0
"""Whoever has not read a version by then has too much to do to read it ahead."""

log = structlog.get_logger()


class WeightsCorrupt(ServiceError):
    """The bytes of a version no longer match their digest; `digest` names the object at fault."""

    status = 503
    code = "version_quarantined"
    title = "Not available"

    def __init__(self, digest: str) -> None:
        super().__init__(
            "The stored bytes of this version no longer match their digest, so it is not served. "
            "Ask another version, or roll back.",
            retry_after=60,
        )
        self.digest = digest


class CannotAnswer(ServiceError):
    """The predictor is well and the bytes are whole, and still there is no answer: it would be so again."""

    status = 500
    code = "version_cannot_answer"
    title = "The version can't answer"

    def __init__(self, why: str) -> None:
        super().__init__(f"{why} To ask again does not help: ask another version, or roll back.")


@dataclass(frozen=True, slots=True)
class Question:
    """What one version is asked. `candidates`, where given, are ranked after each prompt."""

    root_digest: str
    overlay_digest: str | None
    prompts: Sequence[str]
    max_tokens: int
    top_k: int | None = None
    candidates: Sequence[str] | None = None


class PredictorClient:
    """One for the process; asks the predictors in turn, and the next one when one is gone."""

    def __init__(self, settings: Settings, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        token = settings.predictor_token.get_secret_value()
        self._urls = settings.predictor_urls
        self._turn = itertools.count()
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx2.Timeout(TIMEOUT_SECONDS, connect=2.0),
            # The predictor's queue says when it is full; waiting for a connection would only hide that.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
            transport=transport,
        )

    async def ask(self, question: Question) -> list[dict[str, Any]]:
        """One answer a prompt: text, n_tokens, stopped, top_k, candidates.

        Raises:
            WeightsCorrupt; CannotAnswer; Unavailable: no predictor answers, or all are full; Invalid.
        """
        body = {
            "root_digest": question.root_digest,
            "overlay_digest": question.overlay_digest,
            "prompts": list(question.prompts),
            "max_tokens": question.max_tokens,
            "top_k": question.top_k,
            "candidates": None if question.candidates is None else list(question.candidates),
        }
        return await self._post("/predict", body, len(question.prompts))

    async def warm(self, root_digest: str, overlay_digest: str | None) -> None:
        """Have every predictor read a version ahead of its first question. Only for speed: it never fails."""
        body = {"root_digest": root_digest, "overlay_digest": overlay_digest}

        async def told(url: str) -> None:
            with suppress(httpx2.HTTPError):
                await self._http.post(f"{url}/warm", json=body, timeout=WARM_SECONDS)

        await asyncio.gather(*(told(url) for url in self._urls))

    async def ready(self) -> bool:
        """Whether any predictor answers, and would answer us."""
        for url in self._urls:
            try:
                response = await self._http.get(f"{url}/readyz", timeout=2.0)
            except httpx2.TransportError:
                continue
            may_ask = _said(response).get("may_ask")  # false: FACTEDIT_PREDICTOR_TOKEN is not the predictor's
            if response.status_code == 200 and may_ask:
                return True
            log.error("predictor_not_ready", url=url, status=response.status_code, may_ask=may_ask)
        return False

    async def close(self) -> None:
        await self._http.aclose()

    async def _post(self, path: str, body: dict[str, Any], count: int) -> list[dict[str, Any]]:
        first = next(self._turn)
        refusal: ServiceError = Unavailable(
            "The predictor does not answer at the moment; try again shortly.",
            code="predictor_away",
            retry_after=2,
        )
        for place in range(len(self._urls)):
            url = self._urls[(first + place) % len(self._urls)]
            try:
                response = await self._http.post(
                    f"{url}{path}",
                    json=body,
                    headers={"X-Timeout-Seconds": str(TIMEOUT_SECONDS - MARGIN_SECONDS)},
                )
            except httpx2.TransportError:
                continue
            if response.status_code == 200 and (answers := _answers(response, count)) is not None:
                return answers
            refusal = _refusal(response)
            if not isinstance(refusal, Unavailable):
                raise refusal
        raise refusal


def _answers(response: httpx2.Response, count: int) -> list[dict[str, Any]] | None:
    """The answers, if the response is what a predictor sends, and not what something in between does."""
    try:
        answers = response.json()["answers"]
    except (ValueError, KeyError, TypeError):
        return None
    return answers if isinstance(answers, list) and len(answers) == count else None


def _said(response: httpx2.Response) -> dict[str, Any]:
    """The response's members, if it has any."""
    try:
        said = response.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _refusal(response: httpx2.Response) -> ServiceError:
    said = _said(response)
    code, message = said.get("code", ""), said.get("message", "")
    match response.status_code, code:
        case _, "corrupt_checkpoint":
            return WeightsCorrupt(said.get("digest", ""))
        case _, "bad_request":
            return Invalid(message, code="invalid_request")
        case 413, _:
            return Invalid(
                "Too many prompts and candidates for one question; ask in several.", code="body_too_large"
            )
        case _, "overloaded":
            wait = response.headers.get("Retry-After", "1")
            return Unavailable(message, code="overloaded", retry_after=int(wait) if wait.isdecimal() else 1)
    # The user can do nothing about these; whoever runs the service must hear of them.
    log.error(
        "predictor_refused",
        url=str(response.request.url),
        status=response.status_code,
        code=code,
        message=message,
    )
    match code:
        case "internal":
            return CannotAnswer(message or "This version could not answer.")
        case "missing_checkpoint":
            return Unavailable(
                "The version's files are not in the store.", code="version_missing", retry_after=60
            )
    return Unavailable(
        "The predictor can't answer at the moment; try again shortly.", code="predictor_away", retry_after=2
    )
