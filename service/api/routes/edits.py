"""POST /edits: a batch becomes a job, or, as a dry run, only a plan."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from factedit.answers import begins_with, mentions
from factedit.facts import Edit
from factedit.presets import PRESETS
from factedit.relations import Relation
from factedit.wording import edit_prompt, evaluation_prompts, ours_each, training_prompts
from service import batches, jobs, models, relations, versions
from service.api.body import StrictRoute
from service.api.dependencies import Editor, OnceOnly, Outcome, Parts, PartsOf, answer, check_gate
from service.api.routes.predict import quarantine
from service.api.schemas.edits import DryRun, EditsIn, PlannedEdit, Rival, Superseded
from service.api.schemas.jobs import JobOut, job_out
from service.errors import Conflict, Invalid, ServiceError
from service.keys import Actor
from service.predictor_client import Question, WeightsCorrupt
from service.rivals import rivals
from service.tables import PRODUCTION, EditRow, Model, Version

router = APIRouter(tags=["edits"], route_class=StrictRoute)
DRY_RUN_ASKS = 32
DRY_RUN_TOKENS = 12


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
        plan, base = await anyio.to_thread.run_sync(_plan, parts, body)
        await _ask_base(parts, plan, base)
        return answer(Outcome(200, plan, {}))
    return await anyio.to_thread.run_sync(_post, parts, body, who, once)


def _post(parts: Parts, body: EditsIn, who: Actor, once: OnceOnly) -> JSONResponse:
    with parts.database.transaction() as s:

        def act() -> Outcome:
            model, base, edits = _checked(s, parts, body)
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


def _checked(s: Session, parts: Parts, body: EditsIn) -> tuple[Model, Version, list[Edit]]:
    """Raises NotFound, Invalid, Conflict."""
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
    drafts = [batches.Draft(**edit.model_dump()) for edit in body.edits]
    return model, base, batches.check(drafts, relations.all_relations(s))


def _request(body: EditsIn) -> dict[str, Any]:
    return body.model_dump(mode="json", include={"method", "blocks", "constraint", "gate"})


# The dry run


def _plan(parts: Parts, body: EditsIn) -> tuple[DryRun, Question]:
    """The plan without what the base answers today, and how to ask it."""
    with parts.database.transaction() as s:
        model, base, edits = _checked(s, parts, body)
        known = relations.all_relations(s)
        kept, superseded = versions.next_ledger(s, base.id, edits)
        force = _by_fact(superseded)
        ours = ours_each(len(edits)) if PRESETS[body.method.name].other_words else 0
        beside = _rivals(edits, kept, known)
        planned = [
            _planned(edit, place, known, force, ours, beside.get(edit, []))
            for place, edit in enumerate(edits)
        ]
    plan = DryRun(
        model=model.name,
        base_version=base.id,
        edits=planned,
        supersedes=[Superseded(**entry) for entry in versions.supersedes(superseded, edits)],
        training_examples=sum(len(edit.training_prompts) for edit in planned),
        max_steps=body.method.max_steps,
    )
    return plan, Question(model.root_digest, base.overlay_digest, [], DRY_RUN_TOKENS)


def _planned(
    edit: Edit,
    place: int,
    known: dict[str, Relation],
    force: dict[tuple[str, ...], list[EditRow]],
    ours: int,
    beside: list[Rival],
) -> PlannedEdit:
    earlier = {row.id: row for key in versions.keys_of(edit) for row in force.get(key, ())}
    return PlannedEdit(
        kind=edit.kind,
        subject=edit.subject,
        relation=edit.relation,
        new_object=edit.new_object,
        old_object=edit.old_object,
        prompt=edit_prompt(edit, known),
        training_prompts=training_prompts(edit, known, place, ours=ours),
        evaluation_prompts=evaluation_prompts(edit, known),
        current_answer=None,
        already_right=None,
        supersedes=sorted(earlier),
        rivals=beside,
    )


def _rivals(
    edits: Sequence[Edit], kept: Sequence[EditRow], known: Mapping[str, Relation]
) -> dict[Edit, list[Rival]]:
    """By edit of the batch that has any, those of the batch and those that would still be in force."""
    subjects, place = {edit.subject.casefold() for edit in edits}, {edit: n for n, edit in enumerate(edits)}
    earlier = [batches.edit_of(row) for row in kept if row.subject.casefold() in subjects]
    return {
        edit: [
            Rival(
                edit_id=other.id or None,
                place=place.get(other),
                prompt=edit_prompt(other, known),
                new_object=other.new_object,
            )
            for other in others
        ]
        for edit, others in rivals([*edits, *earlier], known).items()
    }


def _by_fact(rows: list[EditRow]) -> dict[tuple[str, ...], list[EditRow]]:
    found: dict[tuple[str, ...], list[EditRow]] = {}
    for row in rows:
        for key in versions.keys_of(row):
            found.setdefault(key, []).append(row)
    return found


async def _ask_base(parts: Parts, plan: DryRun, base: Question) -> None:
    """Fill in what the base answers today, as far as a predictor says so; a plan needs none."""
    size = min(DRY_RUN_ASKS, parts.settings.predictor_queue)
    for part in range(math.ceil(len(plan.edits) / size)):
        edits = plan.edits[part * size : (part + 1) * size]
        question = Question(
            base.root_digest, base.overlay_digest, [edit.prompt for edit in edits], base.max_tokens
        )
        try:
            answers = await parts.predictor.ask(question)
        except WeightsCorrupt as damaged:
            await anyio.to_thread.run_sync(quarantine, parts, damaged.digest)
            raise
        except ServiceError:
            return
        for edit, said in zip(edits, answers, strict=True):
            edit.current_answer = said["text"]
            edit.already_right = _already_right(edit, said["text"])


def _already_right(edit: PlannedEdit, answer: str) -> bool:
    if edit.kind == "erase":
        return not mentions(answer, edit.old_object or "")
    return begins_with(answer, (edit.new_object,))
