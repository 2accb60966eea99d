"""The rules of jobs: create, claim, lease, fence, finish, cancel.

The database owns the job (DESIGN.md, choice 6). A worker may write to a job only while its fence
is the job's and the job runs; every rule below takes the job's row lock first, and no rule reads
any clock but the database's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import events
from service.errors import Conflict, NotFound, TooMany
from service.ids import new_id
from service.paging import Page, page
from service.tables import NOW, PRODUCTION, Alias, EditRow, Job, Json, Phase, Stage, Status, Version

FINAL: tuple[Status, ...] = ("succeeded", "failed", "cancelled")

_CLAIM = text("""
    update jobs
       set status = 'running',
           fence = fence + 1,
           attempts = attempts + 1,
           worker = :worker,
           lease_expires_at = clock_timestamp() + make_interval(secs => :lease),
           started_at = coalesce(started_at, clock_timestamp())
     where id = (
        select j.id
          from jobs j
         where j.stage = :stage
           -- nobody holds it: it is new, or handed over, or given back
           and j.lease_expires_at is null
           and j.cancel_requested_at is null
           and (j.status = 'running'
                -- a model's jobs run one at a time, in the order in which they came
                or (j.status = 'queued' and not exists (
                        select 1 from jobs other
                         where other.model_id = j.model_id
                           and (other.status = 'running'
                                or (other.status = 'queued'
                                    and (other.created_at, other.id) < (j.created_at, j.id))))))
         order by j.created_at, j.id
           for update of j skip locked
         limit 1)
 returning id
""")


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to one stage of one job, for as long as its fence is the job's.

    Attributes:
        base_version_id: the parent of what is made.
        compared_version_id: production at the moment of the claim: what a candidate would replace.
    """

    job_id: str
    model_id: str
    stage: Stage
    fence: int
    attempts: int
    request: Mapping[str, Any]
    seed: int
    promotion: str
    base_version_id: str
    compared_version_id: str
    candidate_version_id: str | None


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

    Raises:
        TooMany: `max_queued` jobs are queued already.
    """
    if max_queued is not None:
        queued = s.scalar(select(func.count()).select_from(Job).where(Job.status == "queued")) or 0
        if queued >= max_queued:
            raise TooMany(f"{queued} jobs are queued already; wait until some are done.", retry_after=30)
    job = Job(
        id=new_id("job"),
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


def claim(s: Session, stage: Stage, worker: str, lease_seconds: float) -> Claim | None:
    """Take the oldest job that waits for this stage, if there is one."""
    try:
        with s.begin_nested():
            parameters = {"stage": stage, "worker": worker, "lease": lease_seconds}
            job_id = s.execute(_CLAIM, parameters).scalar()
    except IntegrityError:
        # Another worker began another job of this model in this very moment.
        return None
    if job_id is None:
        return None
    job = s.get_one(Job, job_id, populate_existing=True)
    production = s.get_one(Alias, (job.model_id, PRODUCTION), populate_existing=True).version_id
    if job.base_version_id is None:
        job.base_version_id = production
    events.append(s, job.id, "claimed", stage=stage, attempt=job.attempts)
    return Claim(
        job_id=job.id,
        model_id=job.model_id,
        stage=job.stage,
        fence=job.fence,
        attempts=job.attempts,
        request=job.request,
        seed=job.seed,
        promotion=job.promotion,
        base_version_id=job.base_version_id,
        compared_version_id=production,
        candidate_version_id=job.candidate_version_id,
    )


def renew(s: Session, claim: Claim, lease_seconds: float) -> Literal["held", "cancel", "lost"]:
    """Prolong the lease; says whether the job is to be cancelled, or is somebody else's by now."""
    job = held(s, claim)
    if job is None:
        return "lost"
    if job.cancel_requested_at is not None:
        return "cancel"
    s.execute(
        update(Job)
        .where(Job.id == job.id)
        .values(lease_expires_at=NOW + func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds))
    )
    return "held"


def held(s: Session, claim: Claim) -> Job | None:
    """The job's row, locked, if the claim still holds it."""
    return s.scalar(
        select(Job)
        .where(Job.id == claim.job_id, Job.fence == claim.fence, Job.status == "running")
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def note(
    s: Session,
    claim: Claim,
    *,
    phase: Phase | None = None,
    progress: Mapping[str, Any] | None = None,
    timings: Mapping[str, float] | None = None,
) -> bool:
    """Record how far the work is; False if the claim no longer holds the job."""
    job = held(s, claim)
    if job is None:
        return False
    if phase is not None and phase != job.phase:
        job.phase = phase
        events.append(s, job.id, "phase", phase=phase)
    if progress is not None:
        job.progress = dict(progress)
        events.append(s, job.id, "progress", **progress)
    if timings is not None:
        job.timings = {**job.timings, **timings}
    return True


def hand_to_scoring(s: Session, claim: Claim, candidate_version_id: str) -> bool:
    """The edit stage is done: let any worker claim the score stage."""
    job = held(s, claim)
    if job is None:
        return False
    job.stage, job.candidate_version_id = "score", candidate_version_id
    job.lease_expires_at, job.worker, job.attempts = None, None, 0
    events.append(s, job.id, "published", version=candidate_version_id)
    return True


def succeed(s: Session, claim: Claim, *, promoted: bool) -> bool:
    job = held(s, claim)
    if job is None:
        return False
    job.promoted = promoted
    _finish(s, job, "succeeded", promoted=promoted, version=job.candidate_version_id)
    return True


def fail(s: Session, claim: Claim, code: str, message: str, **extra: Any) -> bool:
    """End the job with an error that a poller can read; its candidate, if any, is refused."""
    job = held(s, claim)
    if job is None:
        return False
    _fail(s, job, code, message, **extra)
    return True


def cancelled(s: Session, claim: Claim) -> bool:
    job = held(s, claim)
    if job is None:
        return False
    _cancel(s, job)
    return True


def give_back(
    s: Session, claim: Claim, reason: str, max_attempts: int
) -> Literal["requeued", "failed", "cancelled", "lost"]:
    """The work broke under the worker: let another try, or end the job after `max_attempts`."""
    job = held(s, claim)
    return "lost" if job is None else _try_again(s, job, reason, max_attempts)


def hand_back(s: Session, claim: Claim, reason: str) -> Literal["requeued", "cancelled", "lost"]:
    """The worker has to go, which is no fault of the job's: it costs none of its attempts."""
    job = held(s, claim)
    if job is None:
        return "lost"
    job.attempts -= 1
    outcome = _try_again(s, job, reason, job.attempts + 1)
    assert outcome != "failed"
    return outcome


def reap(s: Session, max_attempts: int) -> list[tuple[str, Stage, str]]:
    """Free every job whose lease has expired; (job, stage, what became of it) for each."""
    expired = s.scalars(
        select(Job)
        .where(Job.status == "running", Job.lease_expires_at < NOW)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    return [
        (job.id, job.stage, _try_again(s, job, f"Worker {job.worker} was not heard of.", max_attempts))
        for job in expired
    ]


def claimable(s: Session) -> list[tuple[Stage, str]]:
    """The oldest job that nobody holds, for each stage that one waits for; oldest first."""
    oldest = (
        select(Job.stage, Job.id, Job.created_at)
        .where(
            Job.status.in_(("queued", "running")),
            Job.lease_expires_at.is_(None),
            Job.cancel_requested_at.is_(None),
        )
        .distinct(Job.stage)
        .order_by(Job.stage, Job.created_at, Job.id)
        .subquery()
    )
    rows = s.execute(select(oldest.c.stage, oldest.c.id).order_by(oldest.c.created_at, oldest.c.id))
    return [(stage, job_id) for stage, job_id in rows]


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
        _cancel(s, job)
    s.refresh(job)
    return job


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


def _try_again(
    s: Session, job: Job, reason: str, max_attempts: int
) -> Literal["requeued", "failed", "cancelled"]:
    if job.cancel_requested_at is not None:
        _cancel(s, job)
        return "cancelled"
    if job.attempts >= max_attempts:
        _fail(s, job, "worker_lost", f"The work broke off {job.attempts} times. Last: {reason}")
        return "failed"
    # The fence moves on, so that whoever held the job can no longer write to it.
    job.fence += 1
    job.lease_expires_at, job.worker = None, None
    events.append(s, job.id, "requeued", reason=reason, attempt=job.attempts)
    return "requeued"


def _fail(s: Session, job: Job, code: str, message: str, **extra: Any) -> None:
    job.error = {"code": code, "message": message, **extra}
    _refuse_candidate(s, job)
    _finish(s, job, "failed", error=job.error)


def _cancel(s: Session, job: Job) -> None:
    _refuse_candidate(s, job)
    _finish(s, job, "cancelled")


def _refuse_candidate(s: Session, job: Job) -> None:
    if job.candidate_version_id is not None:
        s.execute(
            update(Version)
            .where(Version.id == job.candidate_version_id, Version.state == "candidate")
            .values(state="refused")
        )


def _finish(s: Session, job: Job, status: Status, **data: Any) -> None:
    job.status, job.phase, job.lease_expires_at, job.worker = status, None, None, None
    s.flush()
    s.execute(update(Job).where(Job.id == job.id).values(finished_at=NOW))
    events.append(s, job.id, status, **data)
