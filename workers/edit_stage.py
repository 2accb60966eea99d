"""The edit stage: from a claimed job to a candidate version that is durable, recorded, and to be scored."""

from pydantic import TypeAdapter
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from factedit.manifests import LedgerEdit
from factedit.specs import Blocks, ConstraintSpec, MethodSpec
from service import jobs, probes, versions
from service.ids import new_id
from service.jobs import Claim
from service.settings import Settings
from service.tables import EditRow, Job, Model, Version
from service.versions import Candidate
from workers.orders import EditDone, EditOrder
from workers.rows import edit_of, relations_of
from workers.supervisor import Supervisor, still_ours

_BLOCKS: TypeAdapter[Blocks] = TypeAdapter(Blocks)


def run(supervisor: Supervisor, settings: Settings, claim: Claim) -> None:
    """Have a version made and record it, all at once, as the job's candidate."""
    version_id = new_id("ver")
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
    new = jobs.edits_of(s, claim.job_id)
    kept, _ = versions.next_ledger(s, base.id, new)
    method = MethodSpec.model_validate(claim.request.get("method", {}))
    constraint = ConstraintSpec.model_validate(claim.request.get("constraint", {}))
    return EditOrder(
        store_dir=settings.store_dir.resolve(),
        device=settings.device,
        root_digest=model.root_digest,
        parent_overlay=base.overlay_digest,
        edits=[edit_of(row) for row in new],
        ledger=[edit_of(row) for row in kept],
        relations=dict(relations_of(s, [*new, *kept])),
        avoid=[row.prompt for row in probes.of_model(s, model.id) if row.source == "user"],
        method=method,
        blocks=_BLOCKS.validate_python(claim.request.get("blocks", "auto")),
        constraint=constraint,
        seed=claim.seed,
        manifest={
            "version": version_id,
            "model": model.name,
            "root_digest": model.root_digest,
            "parent": base.id,
            "job": claim.job_id,
            "seed": claim.seed,
            "method": method.model_dump(),
            "constraint": constraint.model_dump(),
            "ledger": [_ledger_edit(row).model_dump() for row in (*kept, *new)],
        },
    )


def _ledger_edit(row: EditRow) -> LedgerEdit:
    return LedgerEdit(
        edit_id=row.id,
        job_id=row.job_id,
        subject=row.subject,
        relation=row.relation,
        prompt=row.prompt,
        new_object=row.new_object,
    )


def _seconds_queued(s: Session, job: Job) -> float:
    """How long the job waited behind others: until the last that ended between its birth and its start."""
    waited = func.extract("epoch", func.max(Job.finished_at) - job.created_at)
    ended = Job.finished_at.between(job.created_at, job.started_at)
    return float(s.scalar(select(waited).where(ended)) or 0.0)
