"""Takes up what fell: frees jobs whose worker was not heard of, rings again for whatever waits, cleans up.

A thread in each worker; of all of them, in all workers, one sweeps at a time.
"""

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy import text

from service import leases
from service.database import Database, DatabaseAway
from service.doorbell import STAGES, Doorbell
from service.settings import Settings
from workers.housekeeping import keep_house

LOCK = 0x7EED_0001
"""The advisory lock of whoever sweeps; any number that nobody else uses in this database."""

HOUSEKEEPING_SECONDS = 3600.0
"""Between two looks for what can be thrown away."""

DEAF_SECONDS = 20.0
"""An idle worker that leaves a ring unanswered for so long no longer listens."""

log = structlog.get_logger()


class Sweeper:
    """Sweeps every `sweep_seconds` until stopped.

    Celery has had bugs that left a worker connected to a restarted Redis but consuming nothing
    (celery/celery issues 8030, 8091, 10205); against the next one, an idle worker that hears no
    bells calls `on_deaf`, which is to end the process so that a new one takes its place.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        doorbell: Doorbell,
        *,
        busy: Callable[[], bool],
        on_deaf: Callable[[], None],
        deaf_seconds: float = DEAF_SECONDS,
    ) -> None:
        self._settings, self._database, self._doorbell = settings, database, doorbell
        self._busy, self._on_deaf, self._deaf_seconds = busy, on_deaf, deaf_seconds
        self._unanswered_since: float | None = None
        self._reaps_from = self._keeps_house_from = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def sweep(self) -> None:
        """One round. Reaping comes first: a ring for a job that is still leased would be in vain."""
        with self._database.transaction() as s:
            if not s.scalar(text("select pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK}):
                return
            reaped = leases.reap(s, self._settings.job_max_attempts) if self._may_reap() else []
        for job_id, stage, outcome in reaped:
            log.warning("lease_expired", job=job_id, stage=stage, outcome=outcome)
        ring_for_waiting(self._database, self._doorbell)

    def _may_reap(self) -> bool:
        """While the database was away nobody could renew a lease: each gets another one's time."""
        return time.monotonic() >= self._reaps_from

    def keep_house(self) -> None:
        """At most once in HOUSEKEEPING_SECONDS, even if it fails."""
        if time.monotonic() >= self._keeps_house_from:
            self._keeps_house_from = time.monotonic() + HOUSEKEEPING_SECONDS
            keep_house(self._settings, self._database)

    def listen(self) -> None:
        """Find out whether this worker still hears its bells."""
        if self._busy() or not any(self._doorbell.unanswered(stage) for stage in STAGES):
            self._unanswered_since = None
            return
        now = time.monotonic()
        self._unanswered_since = self._unanswered_since or now
        if now - self._unanswered_since >= self._deaf_seconds:
            log.error("worker_deaf", seconds=self._deaf_seconds)
            self._on_deaf()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.sweep_seconds):
            try:
                self.listen()
                self.sweep()
                self.keep_house()
            except DatabaseAway as error:
                self._reaps_from = time.monotonic() + self._settings.lease_seconds
                log.warning("database_away", error=str(error))
            except Exception:
                log.exception("sweep_broke")


def ring_for_waiting(database: Database, doorbell: Doorbell) -> None:
    """Ring for each stage that a job waits for, unless a ring is still unanswered: bells never pile up."""
    with database.transaction() as s:
        waiting = {stage for stage, _ in leases.claimable(s)}
    for stage in STAGES:
        if stage in waiting and doorbell.unanswered(stage) == 0:
            doorbell.ring(stage)
