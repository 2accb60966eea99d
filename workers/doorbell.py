"""The Celery tasks: to hear a bell is to look in the database for a job of that stage."""

from collections.abc import Callable

from celery import Celery

from service.doorbell import STAGES, task_name
from service.tables import Stage


def answer_with(app: Celery, answer: Callable[[Stage], None]) -> None:
    """Have every ring answered, whatever it carries: the message itself says nothing."""
    for stage in STAGES:
        _task(app, stage, answer)


def _task(app: Celery, stage: Stage, answer: Callable[[Stage], None]) -> None:
    @app.task(name=task_name(stage), ignore_result=True)  # type: ignore[untyped-decorator]
    def answered() -> None:
        answer(stage)
