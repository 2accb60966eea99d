"""Jobs for a worker whose child computes nothing, and what became of them."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service import events, jobs, leases, models, probes
from service.database import Database
from service.doorbell import Doorbell
from service.settings import Settings
from service.tables import Job
from tests.support.fake_work import FINE
from tests.support.records import add_job, add_model, edit_row
from workers.celery_app import child_environment
from workers.stages import Stages
from workers.warm_child import WarmChild

ENOUGH_PROBES = 100
"""That no loss among them passes the default gate: the bound is 3 %."""


class Bench:
    """A worker without Celery: a bell is answered by calling `answer`."""

    def __init__(self, database: Database, redis_url: str, folder: Path) -> None:
        self.settings = Settings(data_dir=folder, redis_url=redis_url, lease_seconds=1.5)
        self.database = database
        self.stopping = threading.Event()
        self.child = WarmChild(child_environment(self.settings), works="tests.support.fake_work")
        self.bell = Doorbell(redis_url)
        self.stages = Stages(
            self.settings, database, self.child, self.bell, worker="w", stopping=self.stopping
        )

    def work(self) -> None:
        """Answer until nothing waits."""
        for _ in range(20):
            with self.database.transaction() as s:
                waiting = leases.claimable(s)
            if not waiting:
                return
            self.stages.answer(waiting[0][0])

    def close(self) -> None:
        self.child.end()
        self.bell.close()


def add_probed_model(database: Database, name: str = "toy") -> str:
    with database.transaction() as s:
        model = add_model(s, name)
        asked: list[dict[str, Any]] = [
            {
                "subject": None,
                "relation": None,
                "prompt": f"p {number}",
                "object": "x",
                "aliases": [],
                "candidates": [],
            }
            for number in range(ENOUGH_PROBES)
        ]
        probes.create(s, model, "catalogue", asked)
        return model.id


def post(
    database: Database,
    edit: str = FINE,
    score: str = FINE,
    *,
    model: str = "toy",
    **fields: Any,
) -> str:
    """A job whose edit and score stages behave as said; its id."""
    with database.transaction() as s:
        batch = [edit_row(subject=edit, new_object=score, relation=None, prompt=f"{edit} {time.monotonic()}")]
        return add_job(s, models.get(s, model), batch, **fields).id


def read(database: Database, job_id: str) -> Job:
    with database.transaction() as s:
        return jobs.get(s, job_id)


def types(database: Database, job_id: str) -> list[str]:
    """What happened to a job, in order, but for its progress."""
    with database.transaction() as s:
        return [event.type for event in events.after(s, job_id) if event.type not in ("phase", "progress")]


def cancel(database: Database, job_id: str) -> None:
    with database.transaction() as s:
        jobs.request_cancel(s, job_id)


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def tries(store: Path) -> list[str]:
    """What each try was told to do, in order, in all processes."""
    file = store / "tries"
    return [line.rsplit(" ", 1)[0] for line in file.read_text().splitlines()] if file.exists() else []
