"""Two workers, one of them two hours ahead and the other two behind: only the database's clock counts."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from service.doorbell import Doorbell
from tests.support.clocks import OtherWorker, other_worker, wrong_clock
from tests.support.ends import assert_ended_as_undisturbed
from tests.support.tools import times
from tests.support.toy_stack import MODEL, Json, ToyStack, eventually, quick

RINGS = 5
HOURS = {"ahead": 2, "behind": -2}
ROUNDS = [("ahead", "behind"), ("behind", "ahead")] * times(1, 20)
COUNTRIES = ["France", "Germany", "Italy"]


class Workers:
    """A worker with each wrong clock, instead of the stack's own; entered in `running`."""

    def __init__(self, toy: ToyStack, folder: Path, running: ExitStack) -> None:
        self._toy, self._folder, self._running = toy, folder, running
        self._clocks = {name: wrong_clock(f"{hours:+d}h") for name, hours in HOURS.items()}
        self._now: dict[str, OtherWorker] = {}

    def __getitem__(self, name: str) -> OtherWorker:
        """The one that runs now; it is started if there is none."""
        if name not in self._now:
            log = self._folder / f"{name}-{time.monotonic_ns()}.log"
            self._now[name] = self._running.enter_context(other_worker(self._toy, log, self._clocks[name]))
        return self._now[name]

    def kill(self, name: str) -> None:
        self._now.pop(name).kill()


@pytest.fixture(scope="module")
def workers(
    running: ToyStack, undisturbed: Json, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    with ExitStack() as stack:
        found = Workers(running, tmp_path_factory.mktemp("clocks"), stack)
        stack.enter_context(running.without("worker"))
        for name in HOURS:
            found[name]
        yield found
    eventually(running.whole, 60)


@pytest.fixture
def stack(running: ToyStack, workers: Workers) -> ToyStack:
    running.start_at_root()
    return running


def post_slow_to(toy: ToyStack, holder: OtherWorker, other: OtherWorker) -> str:
    """The id of a job that the holder is editing now."""
    with other.paused():
        job_id = toy.post_slow()
        assert holder.holds(toy, job_id)
    return job_id


def test_each_job_ends_once_with_one_version_and_one_at_a_time_however_often_the_bell_rings(
    stack: ToyStack, workers: Workers
) -> None:
    bell = Doorbell(stack.settings.redis_url)
    posted = []
    for country in COUNTRIES * times(1, 20):
        posted.append(stack.post(quick(country, "Rome"), promotion="manual"))
        for _ in range(RINGS):
            bell.ring("edit")
    bell.close()
    jobs = [stack.ended(job_id) for job_id in posted]
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert {len(stack.versions_of(job_id)) for job_id in posted} == {1}
    for once in ("published", "succeeded"):
        assert {stack.types(job_id).count(once) for job_id in posted} == {1}
    for earlier, later in pairwise(jobs):
        assert earlier["finished_at"] <= later["started_at"]


def test_the_list_of_versions_is_newest_first_whatever_the_clocks_of_those_who_made_them(
    stack: ToyStack, workers: Workers
) -> None:
    made = []
    for name, other in (("ahead", "behind"), ("behind", "ahead")):
        with workers[other].paused():
            made.append(stack.made(quick("France", "Rome"), promotion="manual")["id"])
        wrong_by = workers[name].said("stage_begins")[-1] - datetime.now(UTC)
        assert abs(wrong_by - timedelta(hours=HOURS[name])) < timedelta(minutes=2), "the test lacks its cause"
    listed = [version["id"] for version in stack.api.get(f"/models/{MODEL}/versions")["data"]]
    assert listed[:2] == made[::-1]


@pytest.mark.parametrize(("holder", "other"), ROUNDS[::2])
def test_a_worker_that_is_paused_past_its_lease_leaves_no_trace_when_it_goes_on(
    stack: ToyStack, workers: Workers, undisturbed: Json, holder: str, other: str
) -> None:
    paused = workers[holder]
    lost = len(paused.said("claim_lost"))
    job_id = post_slow_to(stack, paused, workers[other])
    with paused.paused():
        stack.ended(job_id)
    eventually(lambda: len(paused.said("claim_lost")) > lost, 30)
    assert_ended_as_undisturbed(stack, job_id, undisturbed)
    assert "requeued" in stack.types(job_id)


@pytest.mark.parametrize(("holder", "other"), ROUNDS[1::2])
def test_when_a_worker_is_killed_the_other_ends_its_job_as_if_nothing_had_happened(
    stack: ToyStack, workers: Workers, undisturbed: Json, holder: str, other: str
) -> None:
    job_id = post_slow_to(stack, workers[holder], workers[other])
    workers.kill(holder)
    assert_ended_as_undisturbed(stack, job_id, undisturbed)
    assert "requeued" in stack.types(job_id)
