"""The record of jobs: create, read, cancel, end.

The database owns the job (DESIGN.md, choice 6). What a worker may do to one is in service.leases.
Whoever changes a job holds its row lock, and no rule reads any clock but the database's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service import events
from service.database import now
from service.errors import Conflict, NotFound, TooMany
from service.ids import new_id
from service.paging import Page, page
from service.tables import NOW, EditRow, Job, Json, Status, Version

FINAL: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
NAMED_BASE = "base_version"
"""Among a batch's choices, if it is to build on a version of the user's choice, whatever is in production."""


def create(
    s: Session,
    *,
    model_id: str,
    base_version_id: str | None,
    request: dict[str, Any],
    edits: Sequence[Mapping[str, Any]],
    promotion: str,
    seed: int,
    metadata: dict[str, Any],
    actor: str,
    supersedes: Sequence[Json] = (),
    reverts: str | None = None,
    max_queued: int | None = None,
) -> Job:
    """A new job, queued, with its edits; or with none, to revert the job `reverts`.

    Args:
        base_version_id: to build on; None: production, as it is when the job runs.

    Raises:
        TooMany: `max_queued` jobs are queued already.
    """
    if base_version_id is not None and reverts is None:
        request = {**request, NAMED_BASE: base_version_id}
    if max_queued is not None:
        queued = s.scalar(select(func.count()).select_from(Job).where(Job.status == "queued")) or 0
        if queued >= max_queued:
            raise TooMany(f"{queued} jobs are queued already; wait until some are done.", retry_after=30)
    job = Job(
        id=new_id("job", now(s)),
        model_id=model_id,
        kind="edit" if reverts is None else "revert",
        reverts_job_id=reverts,
        status="queued",
        stage="edit",
        request=request,
        user_metadata=metadata,
        promotion=promotion,
        seed=seed,
        n_edits=len(edits),
        base_version_id=base_version_id,
        supersedes=list(supersedes),
        actor=actor,
    )
    s.add(job)
    s.flush()
    s.add_all(
        EditRow(id=new_id("edt"), job_id=job.id, position=position, **edit)
        for position, edit in enumerate(edits)
    )
    s.flush()
    events.append(s, job.id, "created", n_edits=len(edits), **({"reverts": reverts} if reverts else {}))
    if supersedes:
        events.append(s, job.id, "supersedes", edits=list(supersedes))
    s.refresh(job)
    return job


def note_superseded(s: Session, job: Job, supersedes: Sequence[Json]) -> None:
    """What the batch supersedes, now that its base is settled. The caller holds the job's row lock.

    Told only when it is another list than was told before: production moved while the job was queued.
    """
    if job.supersedes != list(supersedes):
        job.supersedes = list(supersedes)
        events.append(s, job.id, "supersedes", edits=list(supersedes))


def get(s: Session, job_id: str, *, lock: bool = False) -> Job:
    """Raises NotFound."""
    query = select(Job).where(Job.id == job_id).execution_options(populate_existing=True)
    job = s.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFound("job", job_id)
    return job


def edits_of(s: Session, job_id: str) -> list[EditRow]:
    return list(s.scalars(select(EditRow).where(EditRow.job_id == job_id).order_by(EditRow.position)))


def list_jobs(
    s: Session,
    *,
    model_id: str | None = None,
    status: Status | None = None,
    after: str | None = None,
    limit: int = 20,
) -> Page[Job]:
    """Jobs, newest first."""
    query = select(Job)
    if model_id is not None:
        query = query.where(Job.model_id == model_id)
    if status is not None:
        query = query.where(Job.status == status)
    return page(s, query, Job.id, after, limit, newest_first=True)


def request_cancel(s: Session, job_id: str) -> Job:
    """Cancel a job: at once if nobody works on it, else as soon as its worker hears of it.

    Raises:
        NotFound, Conflict: the job has ended.
    """
    job = get(s, job_id, lock=True)
    if job.status in FINAL:
        raise Conflict(f"The job has ended ({job.status}); it can no longer be cancelled.", code="job_ended")
    if job.cancel_requested_at is None:
        s.execute(update(Job).where(Job.id == job.id).values(cancel_requested_at=NOW))
        events.append(s, job.id, "cancel_requested")
    if job.lease_expires_at is None:
        finish_cancelled(s, job)
    s.refresh(job)
    return job


def finish(s: Session, job: Job, status: Status, **data: Any) -> None:
    """End the job. The caller holds its row lock, here and in the two rules below."""
    job.status, job.phase, job.lease_expires_at, job.worker = status, None, None, None
    s.flush()
    s.execute(update(Job).where(Job.id == job.id).values(finished_at=NOW))
    events.append(s, job.id, status, **data)


def finish_failed(s: Session, job: Job, code: str, message: str, **extra: Any) -> None:
    """End the job with an error that a poller can read; its candidate, if any, is refused."""
    job.error = {"code": code, "message": message, **extra}
    _refuse_candidate(s, job)
    finish(s, job, "failed", error=job.error)


def finish_cancelled(s: Session, job: Job) -> None:
    _refuse_candidate(s, job)
    finish(s, job, "cancelled")


def _refuse_candidate(s: Session, job: Job) -> None:
    if job.candidate_version_id is not None:
        s.execute(
            update(Version)
            .where(Version.id == job.candidate_version_id, Version.state == "candidate")
            .values(state="refused")
        )
