"""A job's numbered events: what pollers and streams read."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.tables import JobEvent


def append(s: Session, job_id: str, type_: str, **data: Any) -> None:
    """Add the job's next event. The caller holds the job's row lock, so numbers have no gaps."""
    last = s.scalar(select(func.max(JobEvent.seq)).where(JobEvent.job_id == job_id)) or 0
    s.add(JobEvent(job_id=job_id, seq=last + 1, type=type_, data=data))
    s.flush()


def after(s: Session, job_id: str, seq: int = 0, limit: int = 100) -> list[JobEvent]:
    """The job's events with a number above `seq`, in order."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > seq)
    return list(s.scalars(query.order_by(JobEvent.seq).limit(limit)))
