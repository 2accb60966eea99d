"""Taking one job's batch out of a line again: whether it can be, and which edits are then in force.

A revert is a job of its own: it trains what is left of production's ledger anew from the root.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import jobs, versions
from service.errors import Conflict
from service.tables import PRODUCTION, Alias, EditRow, Job, Model, Version

INHERITED = ("method", "blocks", "constraint", "gate")
"""Choices that a revert takes over from the job that made production."""


@dataclass(frozen=True, slots=True)
class Reversal:
    """What becomes of a version's ledger when a job is taken out of it.

    Attributes:
        remaining: the edits in force afterwards, oldest first; `restored` are those of them that the
            job had superseded.
        reverted: the job's edits that are in force before.
    """

    remaining: list[EditRow]
    restored: list[EditRow]
    reverted: list[EditRow]


def create(
    s: Session,
    job_id: str,
    *,
    promotion: str | None,
    metadata: dict[str, Any],
    reason: str | None,
    actor: str,
    max_queued: int,
) -> Job:
    """A new job, queued, that rebuilds the line from the root without the batch of `job_id`.

    Method, blocks, constraint, gate and seed are those of the job that made production.

    Raises:
        NotFound, TooMany; Conflict: the job brought nothing that is in force in production.
    """
    job = jobs.get(s, job_id, lock=True)  # so that of two that revert it at once one sees the other
    model = s.get_one(Model, job.model_id)
    production = s.get_one(Alias, (model.id, PRODUCTION)).version_id
    _check(s, job, production)
    maker = _maker(s, production) or job
    request = {name: maker.request[name] for name in INHERITED if name in maker.request}
    return jobs.create(
        s,
        model_id=model.id,
        base_version_id=model.root_version_id,
        request=request if reason is None else {**request, "reason": reason},
        edits=[],
        promotion=promotion or maker.promotion,
        seed=maker.seed,
        metadata=metadata,
        actor=actor,
        reverts=job.id,
        max_queued=max_queued,
    )


def reversal(s: Session, job_id: str, version: Version) -> Reversal:
    """What a version's ledger becomes without a job; nothing is `reverted` if it holds none of its edits."""
    ledger = versions.ledger(s, version.id)
    kept = [row for row in ledger if row.job_id != job_id]
    gone = reverted_jobs(version) | {job_id}
    restored = _restored(_uncovered(s, job_id, gone), kept)
    return Reversal(
        remaining=sorted([*kept, *restored], key=lambda row: row.id),
        restored=restored,
        reverted=[row for row in ledger if row.job_id == job_id],
    )


def reverted_jobs(version: Version) -> set[str]:
    """The jobs that were taken out of a version's line."""
    return set(version.manifest.get("reverted", ()))


def _uncovered(s: Session, job_id: str, gone: Collection[str]) -> list[EditRow]:
    """The earlier edits that a job superseded; where a job that is gone brought one, what that one had."""
    batch, found = jobs.edits_of(s, job_id), []
    base = jobs.get(s, job_id).base_version_id
    for row in versions.next_ledger(s, base, batch)[1] if base is not None else ():
        if row.job_id not in gone:
            found.append(row)
            continue
        keys = versions.keys_of(row)
        found += [older for older in _uncovered(s, row.job_id, gone) if keys & versions.keys_of(older)]
    return found


def _restored(uncovered: Iterable[EditRow], kept: Iterable[EditRow]) -> list[EditRow]:
    """Those that nothing in force speaks against; of two that speak of the same fact, the newer."""
    taken = {key for row in kept for key in versions.keys_of(row)}
    restored = []
    for row in sorted(uncovered, key=lambda row: row.id, reverse=True):
        keys = versions.keys_of(row)
        if not keys & taken:
            taken |= keys
            restored.append(row)
    return restored[::-1]


def _check(s: Session, job: Job, production: str) -> None:
    """Raises Conflict."""
    if job.status not in jobs.FINAL:
        raise Conflict(
            f"The job is {job.status}; it has brought nothing yet. Cancel it, or wait until it has ended.",
            code="job_not_ended",
        )
    if job.kind == "revert":
        raise Conflict(
            "A revert brings no edits of its own. To undo it, roll back, or post the batch again.",
            code="job_is_a_revert",
        )
    earlier = list(s.scalars(select(Job).where(Job.reverts_job_id == job.id).order_by(Job.id)))
    for one in earlier:
        if one.status not in jobs.FINAL:
            raise Conflict(f"{one.id} reverts it already; it is {one.status}.", code="revert_in_progress")
    if any(row.job_id == job.id for row in versions.ledger(s, production)):
        return
    if not _was_in_production(s, job):
        raise Conflict(
            "No version with the job's edits has been in production: there is nothing to revert.",
            code="never_promoted",
        )
    for one in earlier:
        if _was_in_production(s, one):
            raise Conflict(f"{one.id} has reverted it; nothing of it is in force.", code="already_reverted")
    raise Conflict(
        "None of the job's edits is in force in production: later ones superseded them all, or production "
        "was rolled back.",
        code="not_in_force",
    )


def _was_in_production(s: Session, job: Job) -> bool:
    candidate = job.candidate_version_id
    return candidate is not None and versions.was_in_production(s, job.model_id, candidate)


def _maker(s: Session, version_id: str) -> Job | None:
    job_id = s.get_one(Version, version_id).job_id
    return None if job_id is None else jobs.get(s, job_id)
