"""Stand over one stage of a job while the child works: keep the lease, pass on progress, watch for cancel.

Whatever ends the work other than its result is an exception here; workers.stages turns it into
what becomes of the job.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from pydantic import BaseModel
from sqlalchemy.orm import Session

from service import leases
from service.database import Database, DatabaseAway
from service.leases import Claim
from service.tables import Job, Phase, Stage
from workers.warm_child import WarmChild
from workers.work import Json, WorkFailed

BEAT_SECONDS = 0.5
"""Between two looks at the job's row, which also tell of a cancel; at least three in a lease."""

AGAIN_SECONDS = 1.0

log = structlog.get_logger()
T = TypeVar("T")


class ClaimLost(Exception):
    """The lease ran out and the job is somebody else's by now: nothing may be written to it."""


class CancelRequested(Exception):
    """Somebody wants the job to end."""


class WorkerStops(Exception):
    """The worker was told to stop; the job is for another."""


@dataclass(frozen=True, slots=True)
class Done:
    """What the child made, and how long each phase took, in seconds."""

    result: Json
    seconds: dict[str, float]


@dataclass
class _News:
    """What the child has said since the last beat."""

    phase: Phase | None = None
    progress: Json | None = None

    def clear(self) -> None:
        self.phase, self.progress = None, None


class Supervisor:
    """Used by one thread; `stopping` is set by a signal."""

    def __init__(
        self, database: Database, child: WarmChild, *, lease_seconds: float, stopping: threading.Event
    ) -> None:
        self._database, self._child = database, child
        self._lease = lease_seconds
        self._beat = min(BEAT_SECONDS, lease_seconds / 3)
        self._stopping = stopping

    def carry_out(self, claim: Claim, work: Stage, order: BaseModel) -> Done:
        """Have the child carry out an order under a claim.

        Raises:
            WorkFailed: the order can't be carried out. ChildDied. ClaimLost. CancelRequested. WorkerStops.
        """
        self._child.give(work, order)
        news = _News()
        due = time.monotonic()
        while True:
            message = self._child.hear(max(0.0, due - time.monotonic()))
            match message:
                case {"said": "phase", "phase": phase}:
                    news.phase = phase
                    due = time.monotonic()  # phases may be short
                case {"said": "progress", "progress": progress}:
                    news.progress = progress
                case {"said": "done", "result": result, "seconds": seconds}:
                    return Done(result, seconds)
                case {"said": "failed", "code": code, "message": text, "digest": digest}:
                    raise WorkFailed(code, text, digest)
            if self._stopping.is_set():
                raise WorkerStops
            if time.monotonic() >= due:
                self._keep(claim, news)
                due = time.monotonic() + self._beat

    def _keep(self, claim: Claim, news: _News) -> None:
        try:
            with self._database.transaction() as s:
                state = leases.renew(s, claim, self._lease)
                if state == "held" and (news.phase is not None or news.progress is not None):
                    leases.note(s, claim, phase=news.phase, progress=news.progress)
        except DatabaseAway as error:
            # The work goes on: while the database is away nobody can take the job from us, and sweepers
            # wait a lease after that.
            log.warning("database_away", job=claim.job_id, error=str(error))
            return
        if state == "lost":
            raise ClaimLost
        if state == "cancel":
            raise CancelRequested
        news.clear()

    def persist(self, write: Callable[[Session], T]) -> T:
        """Carry out a transaction, however long the database is away.

        `write` may run again after it was committed, when the answer to that was lost; it is fenced,
        so it finds that there is nothing left to do.

        Raises:
            WorkerStops: told to stop while the database was away.
        """
        while True:
            try:
                with self._database.transaction() as s:
                    return write(s)
            except DatabaseAway as error:
                log.warning("database_away", error=str(error))
                if self._stopping.wait(AGAIN_SECONDS):
                    raise WorkerStops from error


def still_ours(s: Session, claim: Claim) -> Job:
    """The job, locked, to be written to in this transaction.

    Raises:
        ClaimLost. CancelRequested: it was asked for before anything of ours was written.
    """
    job = leases.held(s, claim)
    if job is None or job.stage != claim.stage:
        raise ClaimLost
    if job.cancel_requested_at is not None:
        raise CancelRequested
    return job
