"""What a worker does when a bell rings: claim a job, carry out its stage, and see to it however that ends."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog
from sqlalchemy.orm import Session

from service import leases, versions
from service.database import Database, DatabaseAway
from service.doorbell import Doorbell
from service.leases import Claim
from service.settings import Settings
from service.tables import Stage
from workers import edit_stage, score_stage
from workers.supervisor import CancelRequested, ClaimLost, Supervisor, WorkerStops
from workers.sweeper import ring_for_waiting
from workers.warm_child import GRACE_SECONDS, ChildDied, WarmChild
from workers.work import WorkFailed

log = structlog.get_logger()

StageRun = Callable[[Supervisor, Settings, Claim], None]
STAGE_RUNS: dict[Stage, StageRun] = {"edit": edit_stage.run, "score": score_stage.run}


class Stages:
    """For the worker's main thread, one call at a time. `busy` is for any thread."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        child: WarmChild,
        doorbell: Doorbell,
        *,
        worker: str,
        stopping: threading.Event,
    ) -> None:
        self._settings, self._database, self._child = settings, database, child
        self._doorbell, self._worker, self._stopping = doorbell, worker, stopping
        self.busy = False
        self._supervisor = Supervisor(
            database, child, lease_seconds=settings.lease_seconds, stopping=stopping
        )

    def answer(self, stage: Stage) -> None:
        """Carry out the oldest job that waits for this stage, if there is one."""
        self.busy = True
        try:
            claim = self._claim(stage)
            if claim is None:
                return
            with suppress(WorkerStops):
                self._carry_out(claim)
            if not self._stopping.is_set():
                self._child.start()  # after a fault: a new one, warm when the next job comes
                with suppress(DatabaseAway):
                    ring_for_waiting(self._database, self._doorbell)
        finally:
            self.busy = False

    def _claim(self, stage: Stage) -> Claim | None:
        if self._stopping.is_set():
            return None
        try:
            with self._database.transaction() as s:
                return leases.claim(s, stage, self._worker, self._settings.lease_seconds)
        except DatabaseAway as error:
            # The sweeper rings again once the database is back.
            log.warning("database_away", error=str(error))
            return None

    def _carry_out(self, claim: Claim) -> None:
        bound = log.bind(job=claim.job_id, stage=claim.stage, attempt=claim.attempts)
        bound.info("stage_begins")
        try:
            STAGE_RUNS[claim.stage](self._supervisor, self._settings, claim)
            bound.info("stage_done")
        except ClaimLost:
            bound.warning("claim_lost")
            self._child.end()
        except CancelRequested:
            bound.info("stage_cancelled")
            self._child.end(GRACE_SECONDS)
            self._supervisor.persist(lambda s: leases.cancelled(s, claim))
        except WorkFailed as failed:
            bound.warning("stage_failed", code=failed.code, message=failed.message)
            self._supervisor.persist(partial(_fail, claim=claim, failed=failed))
        except ChildDied as died:
            bound.warning("child_died", reason=str(died))
            self._give_back(claim, str(died))
        except WorkerStops:
            bound.info("worker_stops")
            self._child.end(GRACE_SECONDS)
            # Tried once: if the database is away too, the lease runs out.
            with suppress(DatabaseAway), self._database.transaction() as s:
                leases.hand_back(s, claim, "The worker was told to stop.")
        except Exception as error:
            bound.exception("stage_broke")
            self._child.end()
            self._give_back(claim, f"{type(error).__name__} in the worker.")

    def _give_back(self, claim: Claim, reason: str) -> None:
        most = self._settings.job_max_attempts
        self._supervisor.persist(lambda s: leases.give_back(s, claim, reason, most))


def _fail(s: Session, claim: Claim, failed: WorkFailed) -> None:
    """End the job. Bytes that no longer match their digest are served by no version any more."""
    if leases.fail(s, claim, failed.code, failed.message) and failed.code == "corrupt_checkpoint":
        versions.quarantine_digest(s, failed.digest or "")
