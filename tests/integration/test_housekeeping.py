"""The sweeper throws away what is of no use any more."""

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import select, text

from service import idempotency
from service.database import Database
from service.doorbell import Doorbell
from service.settings import Settings
from service.tables import IdempotencyKey
from tests.support.working import wait_until
from workers.sweeper import Sweeper


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, sweep_seconds=0.05)


def remember(database: Database, key: str, days: float) -> None:
    """An answer of so many days ago."""
    with database.transaction() as s:
        idempotency.finish(s, "a", key, "digest", 202, {}, {})
        earlier = text("update idempotency_keys set created_at = created_at - make_interval(secs => :age)")
        s.execute(earlier, {"age": days * 24 * 3600})


def known(database: Database) -> set[str]:
    with database.transaction() as s:
        return set(s.scalars(select(IdempotencyKey.key)))


def test_answers_are_kept_for_as_many_days_as_are_set(database: Database) -> None:
    for key, days in (("old", 0.2), ("young", 6.9), ("new", 0.0)):  # each makes the earlier ones older
        remember(database, key, days)
    with database.transaction() as s:
        idempotency.expire(s, 7)
    assert known(database) == {"new", "young"}


def test_the_sweeper_keeps_house(database: Database, redis_url: str, settings: Settings) -> None:
    remember(database, "old", 8)
    leftover = settings.store_dir / "tmp" / "0123"
    leftover.mkdir(parents=True)
    then = time.time() - 25 * 3600
    os.utime(leftover, (then, then))
    bell = Doorbell(redis_url)
    sweeper = Sweeper(settings, database, bell, busy=lambda: True, on_deaf=lambda: None)
    sweeper.start()
    wait_until(lambda: not leftover.exists() and known(database) == set())
    sweeper.stop()
    bell.close()


def test_but_not_at_every_round(database: Database, redis_url: str, settings: Settings) -> None:
    bell = Doorbell(redis_url)
    sweeper = Sweeper(settings, database, bell, busy=lambda: True, on_deaf=lambda: None)
    sweeper.keep_house()
    remember(database, "old", 8)
    sweeper.keep_house()
    bell.close()
    assert known(database) == {"old"}
