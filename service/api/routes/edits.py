"""POST /edits: a batch becomes a job, or, as a dry run, only a plan."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from factedit.facts import Edit
from factedit.presets import PRESETS
from factedit.relations import Relation
from service import batches, jobs, models, planning, relations, versions
from service.api.asking import ask
from service.api.body import StrictRoute
from service.api.dependencies import Editor, OnceOnly, Outcome, Parts, PartsOf, answer, check_gate
from service.api.schemas.edits import DryRun, EditsIn, PlannedEdit, Superseded
from service.api.schemas.jobs import JobOut, job_out
from service.errors import Conflict, Invalid
from service.keys import Actor
from service.tables import PRODUCTION, EditRow, Model, Version

router = APIRouter(tags=["edits"], route_class=StrictRoute)


@dataclass(frozen=True, slots=True)
class Batch:
    """A checked batch, and the earlier edits in force that it would replace."""

    model: Model
    base: Version
    edits: list[Edit]
    superseded: list[EditRow]


@router.post(
    "/edits",
    summary="Post a batch of edits",
    status_code=202,
    response_model=JobOut,
    responses={200: {"model": DryRun, "description": "With `dry_run=true`: what would be done."}},
)
async def post_edits(
    body: EditsIn,
    parts: PartsOf,
    who: Editor,
    once: OnceOnly,
    dry_run: Annotated[bool, Query(description="Check and plan; store nothing.")] = False,
) -> JSONResponse:
    check_gate(who, body.gate, body.promotion)
    if dry_run:
        return await _dry_run(parts, body)
    return await anyio.to_thread.run_sync(_post, parts, body, who, once)


def _post(parts: Parts, body: EditsIn, who: Actor, once: OnceOnly) -> JSONResponse:
    with parts.database.transaction() as s:

        def act() -> Outcome:
            model, base, known = _looked_up(s, parts, body)
            edits = _checked(body, known)
            _, superseded = versions.next_ledger(s, base.id, edits)
            job = jobs.create(
                s,
                model_id=model.id,
                # Production is taken as it is when the job begins, unless the user names a version.
                base_version_id=base.id if body.base_version is not None else None,
                request=_request(body),
                edits=[batches.row_of(edit) for edit in edits],
                promotion=body.promotion,
                seed=body.seed,
                metadata=body.metadata,
                actor=who.id,
                supersedes=versions.supersedes(superseded, edits),
                max_queued=parts.settings.max_queued_jobs,
            )
            return Outcome(202, job_out(job, model.name), {"Location": f"/jobs/{job.id}"})

        response = once.carry_out(s, who, act)
    # Only now is there a row to be found. A ring that is lost is made up for by the sweeper.
    parts.doorbell.ring("edit")
    return response


def _looked_up(s: Session, parts: Parts, body: EditsIn) -> tuple[Model, Version, dict[str, Relation]]:
    """The model, the version to build on, and all relations. Raises NotFound, Invalid, Conflict."""
    if len(body.edits) > parts.settings.max_edits:
        raise Invalid(
            f"{len(body.edits):,} edits are more than the {parts.settings.max_edits:,} of one batch; "
            "post them in several.",
            code="too_many_edits",
            pointer="/edits",
        )
    model = models.get(s, body.model)
    _, base = versions.resolve(s, f"{model.name}@{body.base_version or PRODUCTION}")
    if base.state == "quarantined" and body.base_version is None:
        raise Conflict(
            f"Production, {base.id}, is quarantined: its bytes no longer match their digest. Roll back "
            f"(POST /models/{model.name}/rollback), or have the bytes put back and `factedit version verify "
            f"{model.name} {base.id}` run.",
            code="version_quarantined",
        )
    if base.state in ("refused", "quarantined"):
        raise Conflict(
            f"{base.id} is {base.state}; build on another version.",
            code="version_not_passed",
            pointer="/base_version",
        )
    if isinstance(body.blocks, list) and max(body.blocks) >= model.n_blocks:
        raise Invalid(
            f"{model.name} has blocks 0 to {model.n_blocks - 1}; there is no block {max(body.blocks)}.",
            code="no_such_block",
            pointer="/blocks",
        )
    return model, base, relations.all_relations(s)


def _checked(body: EditsIn, known: Mapping[str, Relation]) -> list[Edit]:
    """Raises Invalid."""
    return batches.check([batches.Draft(**edit.model_dump()) for edit in body.edits], known)


def _request(body: EditsIn) -> dict[str, Any]:
    return body.model_dump(mode="json", include={"method", "blocks", "constraint", "gate"})


async def _dry_run(parts: Parts, body: EditsIn) -> JSONResponse:
    batch, planned = await anyio.to_thread.run_sync(_plan, parts, body)
    model, base = batch.model, batch.base
    await planning.ask_base(
        planned, partial(ask, parts), model.root_digest, base.overlay_digest, parts.settings.predictor_queue
    )
    return await anyio.to_thread.run_sync(_told, body, batch, planned)


def _plan(parts: Parts, body: EditsIn) -> tuple[Batch, list[planning.PlannedEdit]]:
    """Between two short looks at the database and after them: to check and to plan may take seconds."""
    with parts.database.transaction() as s:
        model, base, known = _looked_up(s, parts, body)
    edits = _checked(body, known)
    with parts.database.transaction() as s:
        kept, superseded = versions.next_ledger(s, base.id, edits)
    other_words = PRESETS[body.method.name].other_words
    planned = planning.plan(edits, known, kept, superseded, other_words=other_words)
    return Batch(model, base, edits, superseded), planned


def _told(body: EditsIn, batch: Batch, planned: list[planning.PlannedEdit]) -> JSONResponse:
    plan = DryRun(
        model=batch.model.name,
        base_version=batch.base.id,
        edits=[PlannedEdit(**asdict(edit)) for edit in planned],
        supersedes=[Superseded(**entry) for entry in versions.supersedes(batch.superseded, batch.edits)],
        training_examples=sum(len(edit.training_prompts) for edit in planned),
        max_steps=body.method.max_steps,
    )
    return answer(Outcome(200, plan, {}))
