"""The rules of jobs, against a real PostgreSQL: claims, leases, fences, cancel."""

import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import select, text

from service import events, jobs, leases, models
from service.database import Database
from service.errors import Conflict, TooMany
from service.leases import Claim
from service.tables import Job, Version
from tests.support.records import add_job, add_model, publish

LEASE = 30.0


def claim(database: Database, stage: str = "edit", worker: str = "w", lease: float = LEASE) -> Claim | None:
    with database.transaction() as s:
        return leases.claim(s, stage, worker, lease)  # type: ignore[arg-type]


def must_claim(database: Database, stage: str = "edit", lease: float = LEASE) -> Claim:
    taken = claim(database, stage, lease=lease)
    assert taken is not None
    return taken


def new_job(database: Database, model: str = "toy") -> str:
    with database.transaction() as s:
        found = models.find(s, model) or add_model(s, model)
        return add_job(s, found).id


def status_of(database: Database, job_id: str) -> str:
    with database.transaction() as s:
        return jobs.get(s, job_id).status


def types_of(database: Database, job_id: str) -> list[str]:
    with database.transaction() as s:
        return [event.type for event in events.after(s, job_id)]


def race(count: int, act: Callable[[], object]) -> list[object]:
    barrier = threading.Barrier(count)
    results: list[object] = []

    def run() -> None:
        barrier.wait()
        results.append(act())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_many_claimers_one_gets_the_job(database: Database) -> None:
    job_id = new_job(database)
    taken = [c for c in race(8, lambda: claim(database)) if isinstance(c, Claim)]
    assert [c.job_id for c in taken] == [job_id]
    assert types_of(database, job_id) == ["created", "claimed"]


def test_a_model_has_one_running_job_and_the_oldest_goes_first(database: Database) -> None:
    first, second = new_job(database), new_job(database)
    taken = [c for c in race(8, lambda: claim(database)) if isinstance(c, Claim)]
    assert [c.job_id for c in taken] == [first]
    with database.transaction() as s:
        assert leases.fail(s, taken[0], "editing_failed", "no")
    assert must_claim(database).job_id == second


def test_two_models_run_side_by_side(database: Database) -> None:
    ids = {new_job(database, "a"), new_job(database, "b")}
    assert {must_claim(database).job_id, must_claim(database).job_id} == ids


def test_a_claim_takes_production_as_base_when_none_was_asked_for(database: Database) -> None:
    new_job(database)
    taken = must_claim(database)
    assert taken.base_version_id == taken.compared_version_id
    with database.transaction() as s:
        assert s.get_one(Version, taken.base_version_id).state == "production"


def test_an_expired_lease_is_reaped_and_the_old_worker_is_fenced_off(database: Database) -> None:
    job_id = new_job(database)
    old = must_claim(database, lease=0.05)
    time.sleep(0.1)
    with database.transaction() as s:
        assert leases.reap(s, max_attempts=3) == [(job_id, "edit", "requeued")]
    new = must_claim(database)
    assert new.fence > old.fence
    with database.transaction() as s:
        assert leases.renew(s, old, LEASE) == "lost"
        assert not leases.note(s, old, phase="editing")
        assert not leases.succeed(s, old, promoted=False)
        assert leases.give_back(s, old, "broke", 3) == "lost"
        assert leases.renew(s, new, LEASE) == "held"


def test_a_renewed_lease_is_not_reaped(database: Database) -> None:
    new_job(database)
    taken = must_claim(database, lease=0.05)
    with database.transaction() as s:
        assert leases.renew(s, taken, LEASE) == "held"
    time.sleep(0.1)
    with database.transaction() as s:
        assert leases.reap(s, max_attempts=3) == []


def test_a_poison_job_ends_as_worker_lost(database: Database) -> None:
    job_id = new_job(database)
    outcomes = []
    for _ in range(3):
        taken = must_claim(database)
        with database.transaction() as s:
            outcomes.append(leases.give_back(s, taken, "exit code -9", max_attempts=3))
    assert outcomes == ["requeued", "requeued", "failed"]
    with database.transaction() as s:
        job = jobs.get(s, job_id)
        assert job.status == "failed" and job.error is not None and job.error["code"] == "worker_lost"
        assert job.finished_at is not None
    assert claim(database) is None


def test_a_published_job_waits_for_scoring_with_fresh_attempts(database: Database) -> None:
    job_id = new_job(database)
    taken = must_claim(database)
    with database.transaction() as s:
        version = publish(s, taken)
    assert claim(database, "edit") is None
    scoring = must_claim(database, "score")
    assert (scoring.job_id, scoring.attempts, scoring.candidate_version_id) == (job_id, 1, version.id)


def test_a_fenced_off_worker_publishes_nothing(database: Database) -> None:
    new_job(database)
    old = must_claim(database, lease=0.01)
    time.sleep(0.05)
    with database.transaction() as s:
        leases.reap(s, max_attempts=3)
    with pytest.raises(AssertionError), database.transaction() as s:
        publish(s, old)
    with database.transaction() as s:
        assert [v.kind for v in s.scalars(select(Version))] == ["root"]


def test_a_queued_job_is_cancelled_at_once(database: Database) -> None:
    job_id = new_job(database)
    with database.transaction() as s:
        assert jobs.request_cancel(s, job_id).status == "cancelled"
    assert claim(database) is None
    assert types_of(database, job_id) == ["created", "cancel_requested", "cancelled"]


def test_a_running_job_is_cancelled_by_its_worker(database: Database) -> None:
    job_id = new_job(database)
    taken = must_claim(database)
    with database.transaction() as s:
        assert jobs.request_cancel(s, job_id).status == "running"
        assert leases.renew(s, taken, LEASE) == "cancel"
        assert leases.cancelled(s, taken)
    assert status_of(database, job_id) == "cancelled"


def test_a_job_whose_worker_died_is_cancelled_by_the_sweeper(database: Database) -> None:
    job_id = new_job(database)
    must_claim(database, lease=0.01)
    with database.transaction() as s:
        jobs.request_cancel(s, job_id)
    time.sleep(0.05)
    with database.transaction() as s:
        assert leases.reap(s, max_attempts=3) == [(job_id, "edit", "cancelled")]


def test_cancelling_between_the_stages_refuses_the_candidate(database: Database) -> None:
    job_id = new_job(database)
    taken = must_claim(database)
    with database.transaction() as s:
        version_id = publish(s, taken).id
        jobs.request_cancel(s, job_id)
    with database.transaction() as s:
        assert s.get_one(Version, version_id).state == "refused"
    assert status_of(database, job_id) == "cancelled"


def test_an_ended_job_can_not_be_cancelled(database: Database) -> None:
    job_id = new_job(database)
    taken = must_claim(database)
    with database.transaction() as s:
        leases.fail(s, taken, "editing_failed", "no")
    with pytest.raises(Conflict, match="has ended"), database.transaction() as s:
        jobs.request_cancel(s, job_id)


def test_claim_and_cancel_in_the_same_moment_leave_one_truth(database: Database) -> None:
    def cancel(job_id: str) -> None:
        with database.transaction() as s:
            jobs.request_cancel(s, job_id)

    for _ in range(10):
        job_id = new_job(database)
        cancelling = threading.Thread(target=cancel, args=(job_id,))
        cancelling.start()
        taken = claim(database)
        cancelling.join()
        if taken is None:
            assert status_of(database, job_id) == "cancelled"
            continue
        with database.transaction() as s:
            assert leases.renew(s, taken, LEASE) == "cancel"
            assert leases.cancelled(s, taken)


def test_a_full_queue_is_a_refusal_that_says_when_to_come_back(database: Database) -> None:
    new_job(database)
    with database.transaction() as s:
        model_id = jobs.list_jobs(s).items[0].model_id
        with pytest.raises(TooMany) as refusal:
            jobs.create(
                s,
                model_id=model_id,
                base_version_id=None,
                request={},
                edits=[],
                promotion="automatic",
                seed=0,
                metadata={},
                actor="t",
                max_queued=1,
            )
    assert refusal.value.retry_after is not None


def test_doorbells_are_due_for_jobs_that_nobody_holds(database: Database) -> None:
    first, second = new_job(database, "a"), new_job(database, "b")
    taken = must_claim(database)
    with database.transaction() as s:
        assert leases.claimable(s) == [("edit", second)]
        publish(s, taken)
        assert leases.claimable(s) == [("score", first), ("edit", second)]


def test_lists_go_on_after_a_cursor(database: Database) -> None:
    ids = [new_job(database) for _ in range(5)]
    with database.transaction() as s:
        first = jobs.list_jobs(s, limit=3)
        rest = jobs.list_jobs(s, limit=3, after=first.items[-1].id)
    assert [job.id for job in (*first.items, *rest.items)] == ids[::-1]
    assert (first.has_more, rest.has_more) == (True, False)


def test_the_database_itself_refuses_a_second_running_job(database: Database) -> None:
    first, second = new_job(database), new_job(database)
    must_claim(database)
    with pytest.raises(Exception, match="one_running_job_per_model"), database.transaction() as s:
        s.execute(text("update jobs set status = 'running' where id = :id"), {"id": second})
    with database.transaction() as s:
        assert s.get_one(Job, first).status == "running"
