"""GET /models, and one model's facts in force."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from service import aliases, models, versions
from service.api.body import StrictRoute
from service.api.dependencies import After, Limit, PartsOf, Reader
from service.api.schemas.common import ListOf
from service.api.schemas.models import FactOut, ModelOut, fact_out, model_out
from service.tables import PRODUCTION, Model

router = APIRouter(tags=["models"], route_class=StrictRoute)


@router.get("/models", summary="List the registered models")
def list_models(parts: PartsOf, _: Reader, after: After = None, limit: Limit = 20) -> ListOf[ModelOut]:
    with parts.database.transaction() as s:
        page = models.list_models(s, after, limit)
        return ListOf[ModelOut](data=[_out(s, model) for model in page.items], has_more=page.has_more)


@router.get("/models/{model}", summary="One model, and its version in production")
def get_model(model: str, parts: PartsOf, _: Reader) -> ModelOut:
    with parts.database.transaction() as s:
        return _out(s, models.get(s, model))


@router.get("/models/{model}/facts", summary="The ledger: which edits are in force, and which job made them")
def list_facts(
    model: str,
    parts: PartsOf,
    _: Reader,
    subject: Annotated[str | None, Query(max_length=500)] = None,
    version: Annotated[
        str, Query(min_length=1, max_length=100, description="`ver_…` or an alias.")
    ] = PRODUCTION,
    after: After = None,
    limit: Limit = 20,
) -> ListOf[FactOut]:
    with parts.database.transaction() as s:
        found = versions.resolve(s, f"{model}@{version}")[1]
        rows = [row for row in versions.ledger(s, found.id, subject) if after is None or row.id > after]
        return ListOf[FactOut](data=[fact_out(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _out(s: Session, model: Model) -> ModelOut:
    return model_out(model, aliases.get(s, model, PRODUCTION))
