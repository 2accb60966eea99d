"""Ids of a given time: they sort by it, and are ids like all others."""

import uuid
from datetime import UTC, datetime, timedelta

from service.ids import is_id, new_id

BORN = datetime(2026, 11, 28, 12, 0, 0, 123_000, UTC)


def test_an_id_of_a_given_time_is_a_uuid_of_version_7_with_that_time_in_it() -> None:
    name = new_id("ver", BORN)
    made = uuid.UUID(name.removeprefix("ver_"))
    assert is_id(name, "ver")
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert datetime.fromtimestamp((made.int >> 80) / 1000, UTC) == BORN


def test_they_sort_by_their_time_within_a_millisecond_too() -> None:
    ids = [new_id("job", BORN + timedelta(microseconds=n)) for n in range(2500)]
    assert ids == sorted(ids)


def test_two_of_one_moment_differ() -> None:
    assert new_id("ver", BORN) != new_id("ver", BORN)


def test_an_id_of_now_sorts_among_those_of_given_times() -> None:
    now = datetime.now(UTC)
    before, after = now - timedelta(minutes=1), now + timedelta(minutes=1)
    assert new_id("ver", before) < new_id("ver") < new_id("ver", after)
