"""What routes ask for: the database, who asks, paging, and POSTs that may be repeated."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Query, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from sqlalchemy.orm import Session

from factedit.specs import GateSpec
from service import idempotency
from service.database import Database
from service.doorbell import Doorbell
from service.errors import ServiceError
from service.keys import Actor, Scope
from service.predictor_client import PredictorClient
from service.settings import Settings

# Only says in the OpenAPI document what service.api.doorman has checked.
_bearer = HTTPBearer(auto_error=False, description="A key made with `factedit key create`.")


class Forbidden(ServiceError):
    status = 403
    code = "missing_scope"
    title = "Forbidden"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the API is made of; one a process."""

    settings: Settings
    database: Database
    doorbell: Doorbell
    predictor: PredictorClient


def parts(request: Request) -> Parts:
    return cast("Parts", request.app.state.parts)


PartsOf = Annotated[Parts, Depends(parts)]


def may(scope: Scope) -> Callable[..., Actor]:
    """A dependency: who asks, if their key may do it."""

    async def actor(request: Request, _: Annotated[Any, Depends(_bearer)]) -> Actor:
        who: Actor = request.state.actor
        if not who.may(scope):
            raise Forbidden(
                f"This key lacks the scope {scope!r} (it has: {', '.join(sorted(who.scopes))}); "
                "use another key."
            )
        return who

    return cast("Callable[..., Actor]", actor)


def check_gate(who: Actor, gate: GateSpec, promotion: str) -> None:
    """Raises Forbidden: with a looser gate than usual, and no person after it, `edit` would be `promote`."""
    looser = gate.looser()
    if looser and promotion == "automatic" and not who.may("promote"):
        name = next(iter(looser))
        raise Forbidden(
            f"This key lacks the scope 'promote', so it may not loosen the gate ({', '.join(looser)}) of a "
            'batch that is promoted automatically. Leave that, or post with "promotion": "manual".',
            pointer=f"/gate/{name}",
            param=f"gate.{name}",
        )


async def _anyone(request: Request, _: Annotated[Any, Depends(_bearer)]) -> Actor:
    return cast("Actor", request.state.actor)


Reader = Annotated[Actor, Depends(_anyone)]
"""Any valid key may read."""
Predictor = Annotated[Actor, Depends(may("predict"))]
Editor = Annotated[Actor, Depends(may("edit"))]
Promoter = Annotated[Actor, Depends(may("promote"))]

Limit = Annotated[int, Query(ge=1, le=100, description="Entries a page.")]
After = Annotated[str | None, Query(max_length=100, description="The id after which the page begins.")]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a POST came to."""

    status: int
    body: BaseModel
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Once:
    """The Idempotency-Key of a request, if it has one, and what it stands for."""

    key: str | None
    digest: str

    def carry_out(self, s: Session, actor: Actor, act: Callable[[], Outcome]) -> JSONResponse:
        """Act, or give the first answer again. The answer is stored in the transaction of the act."""
        if self.key is None:
            return answer(act())
        replay = idempotency.begin(s, actor.id, self.key, self.digest)
        if replay is not None:
            headers = {**replay.headers, "Idempotent-Replayed": "true"}
            return JSONResponse(replay.response, replay.status_code, headers)
        outcome = act()
        content = outcome.body.model_dump(mode="json")
        idempotency.finish(s, actor.id, self.key, self.digest, outcome.status, content, dict(outcome.headers))
        return answer(outcome)


def answer(outcome: Outcome) -> JSONResponse:
    return JSONResponse(outcome.body.model_dump(mode="json"), outcome.status, dict(outcome.headers))


async def _once(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]+$",
            description="Repeat a POST within some days with the same key and body: the first answer again.",
        ),
    ] = None,
) -> Once:
    target = f"{request.method} {request.url.path}?{request.url.query}\n".encode()
    return Once(idempotency_key, hashlib.sha256(target + await request.body()).hexdigest())


OnceOnly = Annotated[Once, Depends(_once)]
