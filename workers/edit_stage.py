"""The edit stage: from a claimed job to a candidate version that is durable, recorded, and to be scored."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from factedit.manifests import LedgerEdit
from factedit.specs import Blocks, ConstraintSpec, MethodSpec
from service import events, jobs, probes, reverts, versions
from service.batches import edit_of
from service.database import now
from service.ids import new_id
from service.leases import Claim
from service.settings import Settings
from service.tables import EditRow, Job, Model, Version
from service.versions import Candidate
from workers.orders import EditDone, EditOrder
from workers.rows import relations_of
from workers.supervisor import Supervisor, still_ours
from workers.work import WorkFailed

_BLOCKS: TypeAdapter[Blocks] = TypeAdapter(Blocks)


def run(supervisor: Supervisor, settings: Settings, claim: Claim) -> None:
    """Have a version made and record it, all at once, as the job's candidate."""
    version_id = supervisor.persist(lambda s: new_id("ver", now(s)))
    order = supervisor.persist(lambda s: _order(s, settings, claim, version_id))
    done = supervisor.carry_out(claim, "edit", order)
    made = EditDone.model_validate(done.result)
    candidate = Candidate(
        version_id=version_id,
        overlay_digest=made.overlay_digest,
        overlay_bytes=made.overlay_bytes,
        manifest=made.manifest,
        metrics=made.metrics,
        ledger_edit_ids=[edit.id for edit in (*order.ledger, *order.edits)],
    )

    def publish(s: Session) -> None:
        job = still_ours(s, claim)
        job.timings = {"queued": _seconds_queued(s, job), **done.seconds}
        versions.publish_candidate(s, claim, candidate)

    supervisor.persist(publish)


def _order(s: Session, settings: Settings, claim: Claim, version_id: str) -> EditOrder:
    model = s.get_one(Model, claim.model_id)
    base = s.get_one(Version, claim.base_version_id)
    job = still_ours(s, claim)
    task = _batch(s, job, base) if job.kind == "edit" else _rebuilding(s, job, claim)
    method = MethodSpec.model_validate(claim.request.get("method", {}))
    constraint = ConstraintSpec.model_validate(claim.request.get("constraint", {}))
    return EditOrder(
        store_dir=settings.store_dir.resolve(),
        device=settings.device,
        root_digest=model.root_digest,
        parent_overlay=base.overlay_digest,
        edits=[edit_of(row) for row in task.new],
        ledger=[edit_of(row) for row in task.kept],
        relations=dict(relations_of(s, [*task.new, *task.kept])),
        avoid=[row.prompt for row in probes.of_model(s, model.id) if row.source == "user"],
        method=method,
        blocks=_BLOCKS.validate_python(claim.request.get("blocks", "auto")),
        constraint=constraint,
        seed=claim.seed,
        cache_bytes=settings.edit_cache_bytes,
        manifest={
            "version": version_id,
            "model": model.name,
            "root_digest": model.root_digest,
            "parent": base.id,
            "job": claim.job_id,
            "seed": claim.seed,
            "method": method.model_dump(),
            "constraint": constraint.model_dump(),
            "ledger": [_ledger_edit(row).model_dump() for row in (*task.kept, *task.new)],
            "reverted": sorted(task.reverted_jobs),
        },
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """The edits to train on the base, those to keep, and the jobs that are out of the line by then."""

    new: Sequence[EditRow]
    kept: Sequence[EditRow]
    reverted_jobs: set[str]


def _batch(s: Session, job: Job, base: Version) -> _Task:
    new = jobs.edits_of(s, job.id)
    kept, superseded = versions.next_ledger(s, base.id, new)
    jobs.note_superseded(s, job, versions.supersedes(superseded, new))
    return _Task(new, kept, reverts.reverted_jobs(base))


def _rebuilding(s: Session, job: Job, claim: Claim) -> _Task:
    """Over the root all that stays in force is new, so that a method need not know of reverts.

    Raises:
        WorkFailed: production has none of the reverted job's edits any more.
    """
    assert job.reverts_job_id is not None
    production = s.get_one(Version, claim.compared_version_id)
    found = reverts.reversal(s, job.reverts_job_id, production)
    if not found.reverted:
        raise WorkFailed(
            "nothing_to_revert", f"No edit of {job.reverts_job_id} is in force in production by now."
        )
    ids = {"reverted": [row.id for row in found.reverted], "restored": [row.id for row in found.restored]}
    events.append(s, job.id, "reverting", version=production.id, remaining=len(found.remaining), **ids)
    return _Task(found.remaining, [], reverts.reverted_jobs(production) | {job.reverts_job_id})


def _ledger_edit(row: EditRow) -> LedgerEdit:
    return LedgerEdit(
        edit_id=row.id,
        job_id=row.job_id,
        subject=row.subject,
        relation=row.relation,
        prompt=row.prompt,
        new_object=row.new_object,
        erase=row.erase,
    )


def _seconds_queued(s: Session, job: Job) -> float:
    """How long the job waited behind others: until the last that ended between its birth and its start."""
    waited = func.extract("epoch", func.max(Job.finished_at) - job.created_at)
    ended = Job.finished_at.between(job.created_at, job.started_at)
    return float(s.scalar(select(waited).where(ended)) or 0.0)
