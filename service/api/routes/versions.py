"""Versions and what points at them: aliases, rollback, history."""

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query
from fastapi.responses import JSONResponse, Response

from service import aliases, models, versions
from service.api.body import StrictRoute
from service.api.dependencies import After, Limit, OnceOnly, Outcome, PartsOf, Promoter, Reader, answer
from service.api.schemas.common import ListOf
from service.api.schemas.models import (
    AliasIn,
    AliasOut,
    MoveOut,
    RollbackIn,
    RollbackOut,
    VersionOut,
    alias_out,
    move_out,
    version_out,
)
from service.api.text import Name
from service.errors import Invalid
from service.tables import PRODUCTION, Alias

router = APIRouter(tags=["versions"], route_class=StrictRoute)


@router.get("/models/{model}/versions", summary="List a model's versions, newest first")
def list_versions(
    model: str, parts: PartsOf, _: Reader, after: After = None, limit: Limit = 20
) -> ListOf[VersionOut]:
    with parts.database.transaction() as s:
        page = versions.list_versions(s, models.get(s, model), after, limit)
        return ListOf[VersionOut](
            data=[version_out(row, model) for row in page.items], has_more=page.has_more
        )


@router.get("/models/{model}/versions/{version}", summary="One version: where it comes from, what it holds")
def get_version(model: str, version: str, parts: PartsOf, _: Reader) -> VersionOut:
    with parts.database.transaction() as s:
        return version_out(versions.get(s, models.get(s, model), version), model)


@router.get("/models/{model}/aliases", summary="List a model's aliases")
def list_aliases(model: str, parts: PartsOf, _: Reader) -> ListOf[AliasOut]:
    with parts.database.transaction() as s:
        rows = aliases.list_aliases(s, models.get(s, model))
        return ListOf[AliasOut](data=[alias_out(row, model) for row in rows], has_more=False)


@router.get("/models/{model}/aliases/{alias}", summary="Where an alias points", response_model=AliasOut)
def get_alias(model: str, alias: str, parts: PartsOf, _: Reader) -> JSONResponse:
    with parts.database.transaction() as s:
        return _alias(aliases.get(s, models.get(s, model), alias), model, 200)


@router.put(
    "/models/{model}/aliases/{alias}",
    summary="Point an alias at a version",
    response_model=AliasOut,
    responses={201: {"model": AliasOut, "description": "The alias is new."}},
)
def put_alias(
    model: str,
    alias: Name,
    body: AliasIn,
    parts: PartsOf,
    who: Promoter,
    afterwards: BackgroundTasks,
    if_match: Annotated[str | None, Header(description="Only if the alias is at this ETag.")] = None,
    if_none_match: Annotated[str | None, Header(description="`*`: only if there is no such alias.")] = None,
) -> JSONResponse:
    with parts.database.transaction() as s:
        found = models.get(s, model)
        there = alias in {row.name for row in aliases.list_aliases(s, found)}
        row = aliases.set_alias(
            s,
            found,
            alias,
            body.version,
            actor=who.id,
            reason=body.reason,
            if_generation=_generation(if_match),
            if_present=if_match == "*",
            if_absent=if_none_match == "*",
            force=body.force,
        )
        target = versions.get(s, found, row.version_id)
        afterwards.add_task(parts.predictor.warm, found.root_digest, target.overlay_digest)
        return _alias(row, model, 200 if there else 201)


@router.delete("/models/{model}/aliases/{alias}", summary="Delete an alias", status_code=204)
def delete_alias(
    model: str,
    alias: str,
    parts: PartsOf,
    who: Promoter,
    if_match: Annotated[str | None, Header(description="Only if the alias is at this ETag.")] = None,
) -> Response:
    with parts.database.transaction() as s:
        found = models.get(s, model)
        aliases.delete(s, found, alias, actor=who.id, if_generation=_generation(if_match))
    return Response(status_code=204)


@router.post("/models/{model}/rollback", summary="Move production back; instant", response_model=RollbackOut)
def rollback(
    model: str,
    parts: PartsOf,
    who: Promoter,
    once: OnceOnly,
    afterwards: BackgroundTasks,
    body: RollbackIn | None = None,
) -> JSONResponse:
    asked = body or RollbackIn()
    with parts.database.transaction() as s:
        found = models.get(s, model)

        def act() -> Outcome:
            before = aliases.get(s, found, PRODUCTION, lock=True).version_id
            alias, target = aliases.rollback(s, found, to=asked.to, actor=who.id, reason=asked.reason)
            afterwards.add_task(parts.predictor.warm, found.root_digest, target.overlay_digest)
            moved = RollbackOut(
                model=model,
                from_version=before,
                production_version=alias.version_id,
                generation=alias.generation,
            )
            return Outcome(200, moved, {})

        return once.carry_out(s, who, act)


@router.get("/models/{model}/history", summary="Every move of every alias: who, when, from, to, why")
def history(
    model: str,
    parts: PartsOf,
    _: Reader,
    alias: Annotated[str | None, Query(max_length=100)] = None,
    after: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Limit = 20,
) -> ListOf[MoveOut]:
    with parts.database.transaction() as s:
        page = aliases.history(s, models.get(s, model), alias, after, limit)
        return ListOf[MoveOut](data=[move_out(move) for move in page.items], has_more=page.has_more)


def _alias(row: Alias, model: str, status: int) -> JSONResponse:
    return answer(Outcome(status, alias_out(row, model), {"ETag": f'"{row.generation}"'}))


def _generation(etag: str | None) -> int | None:
    """The generation that an If-Match names."""
    if etag is None or etag == "*":
        return None
    digits = etag.removeprefix("W/").strip('"')
    if not digits.isdecimal() or len(digits) > 15:
        raise Invalid('If-Match takes the ETag of the alias, such as "3".', param="If-Match")
    return int(digits)
