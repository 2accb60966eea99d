"""Only what continues production is promoted: no rollback is undone, and nothing is dropped."""

from collections.abc import Callable
from typing import Any

from service import aliases, jobs, leases, models, reverts, versions
from service.database import Database
from service.tables import PRODUCTION, Job
from tests.support.records import add_job, edit_row
from tests.support.working import Bench, read


def queued(database: Database, subject: str, **fields: Any) -> str:
    with database.transaction() as s:
        return add_job(s, models.get(s, "toy"), [edit_row(subject)], **fields).id


def posted(bench: Bench, subject: str, **fields: Any) -> str:
    """A job that has gone all its way."""
    job_id = queued(bench.database, subject, **fields)
    bench.work()
    return job_id


def between(bench: Bench, job_id: str, act: Callable[[], None]) -> Job:
    """The job, once it has ended; something happens when its candidate is made and not scored yet."""
    bench.stages.answer("edit")
    act()
    bench.work()
    return read(bench.database, job_id)


def in_force(database: Database, version: str = PRODUCTION) -> list[str]:
    with database.transaction() as s:
        _, found = versions.resolve(s, f"toy@{version}")
        return [row.subject for row in versions.ledger(s, found.id)]


def roll_back(database: Database, to: str | None = None) -> None:
    with database.transaction() as s:
        aliases.rollback(s, models.get(s, "toy"), to=to, actor="t", reason=None)


def put(database: Database, job_id: str) -> None:
    """Have a job's version in production."""
    with database.transaction() as s:
        version = jobs.get(s, job_id).candidate_version_id
        assert version is not None
        aliases.set_alias(s, models.get(s, "toy"), PRODUCTION, version, actor="t")


def moved(job: Job) -> str:
    """What a job is told that was not promoted because production had moved."""
    assert (job.status, job.promoted) == ("failed", False)
    assert job.error is not None and job.error["code"] == "production_moved"
    message: str = job.error["message"]
    assert "Post the batch again" in message
    return message


def test_a_rollback_is_not_undone_by_a_batch_that_was_built_before_it(bench: Bench) -> None:
    posted(bench, "France")
    job = between(bench, queued(bench.database, "Peru"), lambda: roll_back(bench.database))
    said = moved(job)
    assert "bring back" in said and "'France'" in said and "'Peru'" not in said
    assert in_force(bench.database) == []


def test_a_version_that_a_person_chose_is_not_dropped_by_a_batch_that_was_built_before(bench: Bench) -> None:
    waiting = posted(bench, "France", promotion="manual")
    job = between(bench, queued(bench.database, "Peru"), lambda: put(bench.database, waiting))
    said = moved(job)
    assert "take out" in said and "'France'" in said
    assert in_force(bench.database) == ["France"]


def test_the_batch_posted_again_is_built_on_what_is_there(bench: Bench) -> None:
    posted(bench, "France")
    moved(between(bench, queued(bench.database, "Peru"), lambda: roll_back(bench.database)))
    job = read(bench.database, posted(bench, "Peru"))
    assert job.promoted and in_force(bench.database) == ["Peru"]


def test_a_batch_on_a_version_of_the_users_choice_replaces_what_is_in_production(bench: Bench) -> None:
    posted(bench, "France")
    with bench.database.transaction() as s:
        root = models.get(s, "toy").root_version_id
    job = read(bench.database, posted(bench, "Peru", base_version_id=root))
    assert job.promoted and job.request[jobs.NAMED_BASE] == root
    assert in_force(bench.database) == ["Peru"]


def test_a_new_attempt_builds_on_what_is_in_production_by_then(bench: Bench) -> None:
    database = bench.database
    posted(bench, "France")
    queued(database, "Peru")
    with database.transaction() as s:
        first = leases.claim(s, "edit", "w", 30.0)
        assert first is not None
        leases.hand_back(s, first, "The worker was told to stop.")
    roll_back(database)
    with database.transaction() as s:
        second = leases.claim(s, "edit", "w", 30.0)
        assert second is not None
        assert first.base_version_id != second.base_version_id == second.compared_version_id


def test_a_revert_does_not_undo_a_rollback_either(bench: Bench) -> None:
    database = bench.database
    first, second = posted(bench, "France"), posted(bench, "Peru")
    with database.transaction() as s:
        before = jobs.get(s, first).candidate_version_id
        options: dict[str, Any] = {"metadata": {}, "reason": None, "actor": "t", "max_queued": 9}
        job_id = reverts.create(s, first, promotion=None, **options).id
    said = moved(between(bench, job_id, lambda: roll_back(database, before)))
    assert "bring back" in said and second in said
    assert in_force(database) == ["France"]


def test_a_move_between_versions_that_hold_the_same_is_no_hindrance(bench: Bench) -> None:
    database = bench.database
    first = posted(bench, "France")
    with database.transaction() as s:
        same = add_job(s, models.get(s, "toy"), [edit_row("Chad")]).id
    bench.work()
    with database.transaction() as s:
        options: dict[str, Any] = {"metadata": {}, "reason": None, "actor": "t", "max_queued": 9}
        reverts.create(s, same, promotion=None, **options)
    bench.work()
    assert in_force(database) == ["France"]
    job = between(bench, queued(database, "Peru"), lambda: put(database, first))
    assert job.promoted, job.error
    assert in_force(database) == ["France", "Peru"]
