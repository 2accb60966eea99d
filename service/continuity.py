"""Whether a candidate continues the line that is in production: nothing else comes back with it, or is lost.

Production may have moved since the candidate was built: it was rolled back, or another version was put in
its place. The gate would not see it, for it asks what the candidate is to hold.
"""

from collections.abc import Iterable

from sqlalchemy.orm import Session

from service import jobs, reverts, versions
from service.errors import Conflict
from service.tables import EditRow, Job, Version

SHOWN = 3


def check(s: Session, job: Job, production: Version, candidate: Version) -> None:
    """Raises Conflict: with the candidate other edits would come into force, or go, than its job's."""
    if jobs.NAMED_BASE in job.request:
        return  # what else production holds is meant to go
    wanted = {row.id: row for row in _ledger_after(s, job, production)}
    found = {row.id: row for row in versions.ledger(s, candidate.id)}
    back = [row for row in found.values() if row.id not in wanted]
    lost = [row for row in wanted.values() if row.id not in found]
    if not (back or lost):
        return
    harm = [f"bring back {_list(back)}"] if back else []
    harm += [f"take out {_list(lost)}"] if lost else []
    raise Conflict(
        f"It was built on {candidate.parent_id}, but production is {production.id} by now: promoting it "
        f"would also {' and '.join(harm)}. Post the batch again; it is then built on what is in production.",
        code="production_moved",
    )


def _ledger_after(s: Session, job: Job, production: Version) -> list[EditRow]:
    """What is to be in force if the job's candidate replaces production."""
    if job.reverts_job_id is not None:
        return reverts.reversal(s, job.reverts_job_id, production).remaining
    batch = jobs.edits_of(s, job.id)
    kept, _ = versions.next_ledger(s, production.id, batch)
    return [*kept, *batch]


def _list(rows: Iterable[EditRow]) -> str:
    some = list(rows)
    named = [f"{row.id} ({row.subject!r}: {row.new_object!r}, {row.job_id})" for row in some[:SHOWN]]
    more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
    return f"{', '.join(named)}{more}"
