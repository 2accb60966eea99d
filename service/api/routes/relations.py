"""GET and POST /relations."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from factedit.relations import Relation
from service import relations
from service.api.body import StrictRoute
from service.api.dependencies import Editor, Limit, OnceOnly, Outcome, PartsOf, Reader
from service.api.schemas.common import ListOf
from service.api.schemas.knowledge import RelationIn, RelationOut, relation_out
from service.errors import Invalid

router = APIRouter(tags=["relations"], route_class=StrictRoute)


@router.get("/relations", summary="List the relations, built-in and your own, with their templates")
def list_relations(
    parts: PartsOf,
    _: Reader,
    after: Annotated[str | None, Query(max_length=100, description="The name after which to begin.")] = None,
    limit: Limit = 100,
) -> ListOf[RelationOut]:
    with parts.database.transaction() as s:
        known = relations.all_relations(s)
    names = [name for name in sorted(known) if after is None or name > after]
    data = [relation_out(known[name], builtin=relations.is_builtin(name)) for name in names[:limit]]
    return ListOf[RelationOut](data=data, has_more=len(names) > limit)


@router.get("/relations/{name}", summary="One relation, by its name or an alias")
def get_relation(name: str, parts: PartsOf, _: Reader) -> RelationOut:
    with parts.database.transaction() as s:
        found = relations.get(s, name)
    return relation_out(found, builtin=relations.is_builtin(found.name))


@router.post("/relations", summary="Add a relation of your own", status_code=201, response_model=RelationOut)
def create_relation(body: RelationIn, parts: PartsOf, who: Editor, once: OnceOnly) -> JSONResponse:
    shared = set(body.training_templates) & set(body.evaluation_templates)
    if shared:
        raise Invalid(
            f"Training and evaluation templates must not mix; in both: {sorted(shared)[0]!r}.",
            code="templates_mixed",
            pointer="/evaluation_templates",
        )
    relation = Relation(
        name=body.name,
        description=body.description,
        aliases=tuple(body.aliases),
        training_templates=tuple(dict.fromkeys(body.training_templates)),
        evaluation_templates=tuple(dict.fromkeys(body.evaluation_templates)),
    )
    with parts.database.transaction() as s:

        def act() -> Outcome:
            made = relations.create(s, relation)
            return Outcome(
                201, relation_out(made, builtin=False), {"Location": f"/relations/{relation.name}"}
            )

        return once.carry_out(s, who, act)
