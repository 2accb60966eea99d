"""Regression reports: one a job."""

from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.tables import Report


def store(s: Session, job_id: str, body: dict[str, Any]) -> None:
    """Keep a job's report; one that was scored again replaces the earlier."""
    statement = insert(Report).values(job_id=job_id, body=body)
    s.execute(statement.on_conflict_do_update(index_elements=["job_id"], set_={"body": body}))


def get(s: Session, job_id: str) -> dict[str, Any]:
    """Raises NotFound: the job has not been scored."""
    report = s.get(Report, job_id)
    if report is None:
        raise NotFound("report", job_id)
    return report.body
