"""Liveness and readiness."""

from typing import Literal

import anyio.to_thread
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.api.body import StrictRoute
from service.api.dependencies import Parts, PartsOf
from service.database import DatabaseAway

router = APIRouter(tags=["health"], route_class=StrictRoute)
Word = Literal["ok", "away"]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Without the database nothing works; without Redis jobs start later; predictors answer /predict."""

    ready: bool
    database: Word
    redis: Word
    predictor: Word


@router.get("/healthz", summary="Whether this process lives")
async def healthz() -> Health:
    return Health()


@router.get("/readyz", summary="Whether it can answer", responses={503: {"model": Readiness}})
async def readyz(parts: PartsOf) -> JSONResponse:
    database = await anyio.to_thread.run_sync(_database, parts)
    redis = await anyio.to_thread.run_sync(lambda: parts.doorbell.unanswered("edit") is not None)
    predictor = await parts.predictor.ready()
    found = Readiness(
        ready=database, database=_word(database), redis=_word(redis), predictor=_word(predictor)
    )
    return JSONResponse(found.model_dump(), 200 if database else 503)


def _database(parts: Parts) -> bool:
    try:
        parts.database.ping()
    except DatabaseAway:
        return False
    return True


def _word(well: bool) -> Word:
    return "ok" if well else "away"
