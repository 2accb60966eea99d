"""GET and POST /probes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from factedit.relations import Relation, nearest
from service import models, probes, relations
from service.api.body import StrictRoute
from service.api.dependencies import After, Editor, Limit, OnceOnly, Outcome, PartsOf, Reader
from service.api.schemas.common import ListOf
from service.api.schemas.knowledge import ProbeIn, ProbeOut, ProbesIn, ProbesOut, probe_out
from service.errors import Invalid

router = APIRouter(tags=["probes"], route_class=StrictRoute)


@router.get("/probes", summary="List a model's held-out facts")
def list_probes(
    parts: PartsOf,
    _: Reader,
    model: Annotated[str, Query(max_length=200)],
    source: Annotated[Literal["catalogue", "user"] | None, Query()] = None,
    after: After = None,
    limit: Limit = 20,
) -> ListOf[ProbeOut]:
    with parts.database.transaction() as s:
        page = probes.list_probes(s, models.get(s, model), source, after, limit)
        return ListOf[ProbeOut](data=[probe_out(row, model) for row in page.items], has_more=page.has_more)


@router.post("/probes", summary="Add held-out facts of your own", status_code=201, response_model=ProbesOut)
def create_probes(body: ProbesIn, parts: PartsOf, who: Editor, once: OnceOnly) -> JSONResponse:
    with parts.database.transaction() as s:
        model = models.get(s, body.model)

        def act() -> Outcome:
            known = relations.all_relations(s)
            rows = [_row(probe, place, known) for place, probe in enumerate(body.probes)]
            made = probes.create(s, model, "user", rows)
            return Outcome(201, ProbesOut(data=[probe_out(row, model.name) for row in made]), {})

        return once.carry_out(s, who, act)


def _row(probe: ProbeIn, place: int, known: Mapping[str, Relation]) -> dict[str, Any]:
    relation = None if probe.relation is None else relations.find(known, probe.relation)
    if probe.relation is not None and relation is None:
        close = ", ".join(nearest(probe.relation, known))
        raise Invalid(
            f"There is no relation {probe.relation!r}{f' (nearest: {close})' if close else ''}. "
            "Leave it out and give a prompt, or add it by POST /relations.",
            code="relation_not_found",
            pointer=f"/probes/{place}/relation",
        )
    return {
        "subject": probe.subject,
        "relation": None if relation is None else relation.name,
        "prompt": probe.prompt or _words(probe, place, relation),
        "object": probe.object,
        "aliases": probe.aliases,
        "candidates": list(dict.fromkeys([probe.object, *probe.candidates])) if probe.candidates else [],
    }


def _words(probe: ProbeIn, place: int, relation: Relation | None) -> str:
    """The relation's first evaluation template: words that no edit trains on."""
    if relation is None or probe.subject is None:
        raise Invalid(
            "A probe needs a prompt, or a subject and a relation.",
            code="prompt_missing",
            pointer=f"/probes/{place}",
        )
    prompts = [*relation.evaluation_prompts(probe.subject), *relation.training_prompts(probe.subject)]
    return prompts[0]
