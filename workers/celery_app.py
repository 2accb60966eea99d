"""The Celery application and the worker process around it (DESIGN.md, choices 6 and 7)."""

import logging
import os
import socket
import threading
from typing import Any

import structlog
from celery import Celery, signals
from kombu.entity import Queue

from service import logs
from service.database import Database
from service.doorbell import STAGES, TIMEOUTS, Doorbell
from service.settings import Settings
from workers import doorbell
from workers.stack import threads
from workers.stages import Stages
from workers.sweeper import Sweeper
from workers.warm_child import GRACE_SECONDS, REPERTOIRE, WarmChild

DEAF = 75
NOT_FOR_THE_CHILD = ("FACTEDIT_DATABASE_URL", "FACTEDIT_REDIS_URL", "FACTEDIT_PREDICTOR_TOKEN")

log = structlog.get_logger()


def create_app(redis_url: str) -> Celery:
    """Celery as a bell and nothing more: no results, no late acknowledgement, nothing prefetched."""
    app = Celery("factedit", broker=redis_url)
    app.conf.update(
        task_queues=[Queue(stage) for stage in STAGES],  # type: ignore[no-untyped-call]
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=dict(TIMEOUTS),
        accept_content=["json"],
    )
    return app


def run_worker(settings: Settings, works: str = REPERTOIRE) -> int:
    """Answer bells in this process until told to stop; the exit code."""
    logs.configure()
    stopping = threading.Event()
    database = Database(settings.database_url, pool_size=2, max_overflow=2)
    bell = Doorbell(settings.redis_url)
    child = WarmChild(child_environment(settings), works)
    worker_name = f"{socket.gethostname()}:{os.getpid()}"
    stages = Stages(settings, database, child, bell, worker=worker_name, stopping=stopping)
    sweeper = Sweeper(settings, database, bell, busy=lambda: stages.busy, on_deaf=_begin_anew)
    app = create_app(settings.redis_url)
    doorbell.answer_with(app, stages.answer)

    def stop(**_: Any) -> None:
        stopping.set()

    signals.worker_shutting_down.connect(stop)
    signals.setup_logging.connect(_leave_logging)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    child.start()
    sweeper.start()
    worker = app.Worker(
        hostname=worker_name,
        pool="solo",
        queues=list(STAGES),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    try:
        worker.start()
    finally:
        sweeper.stop()
        child.end(GRACE_SECONDS)
        bell.close()
        database.close()
    return int(worker.exitcode or 0)


def child_environment(settings: Settings) -> dict[str, str]:
    """The child's budget of threads, read when torch is imported; and no way into the database."""
    mine = {name: value for name, value in os.environ.items() if name not in NOT_FOR_THE_CHILD}
    return mine | threads.environment(settings.worker_threads)


def _leave_logging(**_: Any) -> None:
    """Celery configures no logging where somebody answers this signal."""


def _begin_anew() -> None:
    # The main thread hears nothing, so it is not asked; it holds no job, and the child ends with us.
    os._exit(DEAF)
