"""What a worker may do to a job: claim it, renew its lease, note, hand on, end or give it back.

A worker may write to a job only while its fence is the job's and the job runs; every rule below takes
the job's row lock first, and no rule reads any clock but the database's (DESIGN.md, choice 6).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import events, jobs
from service.tables import NOW, PRODUCTION, Alias, Job, Phase, Stage

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
    if stage == "edit" and job.kind == "edit" and jobs.NAMED_BASE not in job.request:
        job.base_version_id = production  # at each attempt anew: it may have been rolled back meanwhile
    assert job.base_version_id is not None
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
    jobs.finish(s, job, "succeeded", promoted=promoted, version=job.candidate_version_id)
    return True


def fail(s: Session, claim: Claim, code: str, message: str, **extra: Any) -> bool:
    """End the job with an error that a poller can read; its candidate, if any, is refused."""
    job = held(s, claim)
    if job is None:
        return False
    jobs.finish_failed(s, job, code, message, **extra)
    return True


def cancelled(s: Session, claim: Claim) -> bool:
    job = held(s, claim)
    if job is None:
        return False
    jobs.finish_cancelled(s, job)
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
        .ext(distinct_on(Job.stage))
        .order_by(Job.stage, Job.created_at, Job.id)
        .subquery()
    )
    rows = s.execute(select(oldest.c.stage, oldest.c.id).order_by(oldest.c.created_at, oldest.c.id))
    return [(stage, job_id) for stage, job_id in rows]


def _try_again(
    s: Session, job: Job, reason: str, max_attempts: int
) -> Literal["requeued", "failed", "cancelled"]:
    if job.cancel_requested_at is not None:
        jobs.finish_cancelled(s, job)
        return "cancelled"
    if job.attempts >= max_attempts:
        jobs.finish_failed(s, job, "worker_lost", f"The work broke off {job.attempts} times. Last: {reason}")
        return "failed"
    # The fence moves on, so that whoever held the job can no longer write to it.
    job.fence += 1
    job.lease_expires_at, job.worker = None, None
    events.append(s, job.id, "requeued", reason=reason, attempt=job.attempts)
    return "requeued"
