"""Ring for waiting jobs: a Celery message that names no job, since the database knows them (choice 6).

Any ring may be lost or doubled; the sweeper rings again, and a claim is given out once.
"""

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from service.tables import Stage

STAGES: tuple[Stage, ...] = ("edit", "score")

TIMEOUTS: dict[str, float | bool | int] = {
    "socket_connect_timeout": 2.0,
    "socket_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 5,
}
ONE_TRY: dict[str, float | int] = {
    "max_retries": 1,
    "interval_start": 0.0,
    "interval_step": 0.0,
    "interval_max": 0.0,
}


class Doorbell:
    """One bell a stage: the Celery queues `edit` and `score`. For any thread."""

    def __init__(self, redis_url: str) -> None:
        self._app = Celery("factedit-doorbell", broker=redis_url, set_as_current=False)
        # Whoever rings is in a hurry: a Redis that is gone is the sweeper's worry, not a client's.
        self._app.conf.broker_transport_options = {**TIMEOUTS, **ONE_TRY}
        self._redis = redis.Redis.from_url(redis_url, socket_connect_timeout=2.0, socket_timeout=2.0)

    def ring(self, stage: Stage) -> bool:
        """Whether Redis took the message; it never raises."""
        try:
            self._app.send_task(task_name(stage), queue=stage, ignore_result=True, retry=False)
        except OperationalError:
            return False
        return True

    def unanswered(self, stage: Stage) -> int | None:
        """How many rings no worker has taken yet; None if Redis does not answer."""
        try:
            return int(self._redis.llen(stage))
        except redis.RedisError:
            return None

    def close(self) -> None:
        self._app.close()
        self._redis.close()


def task_name(stage: Stage) -> str:
    return f"factedit.{stage}"
