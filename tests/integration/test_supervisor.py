"""A worker's main thread and its child, against a real PostgreSQL: whatever happens, the job ends, once."""

import threading
import time
from collections.abc import Callable

import pytest
from pydantic import BaseModel
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service import aliases, leases, models, reports, versions
from service.database import Database
from service.leases import Claim
from service.tables import PRODUCTION, Alias, Stage, Version
from tests.support import fake_work as fake
from tests.support.working import Bench, cancel, post, read, tries, types, wait_until
from workers import score_stage
from workers.supervisor import Done, Supervisor
from workers.sweeper import Sweeper


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def production(database: Database) -> str:
    with database.transaction() as s:
        return s.get_one(Alias, (models.get(s, "toy").id, PRODUCTION)).version_id


def states(database: Database) -> list[str]:
    with database.transaction() as s:
        return list(s.scalars(select(Version.state).order_by(Version.id)))


def test_a_job_goes_through_both_stages_and_its_candidate_into_production(
    bench: Bench, database: Database
) -> None:
    job_id = post(database)
    bench.work()
    job = read(database, job_id)
    assert (job.status, job.promoted, job.error) == ("succeeded", True, None)
    assert production(database) == job.candidate_version_id
    assert states(database) == ["superseded", "production"]
    happened = ["created", "claimed", "published", "claimed", "verdict", "promoted", "succeeded"]
    assert types(database, job_id) == happened


def test_the_report_tells_of_edits_probes_gate_and_times(bench: Bench, database: Database) -> None:
    job_id = post(database)
    bench.work()
    with database.transaction() as s:
        body = reports.get(s, job_id)
    assert body["verdict"]["decision"] == "pass"
    assert body["summary"]["edits"]["efficacy_after"] == 1.0
    assert body["summary"]["probes"]["known_before"] == 100
    assert body["probes"]["flipped"] == []
    assert [edit["right_after"] for edit in body["edits"]] == [True]
    assert body["integrity"]["root_unchanged"] is True
    assert body["timings"]["total"] >= body["timings"]["service_overhead"] > 0
    assert {"queued", "loading", "editing", "publishing", "scoring", "promoting"} <= body["timings"].keys()


def test_the_child_stays_warm_from_stage_to_stage_and_job_to_job(bench: Bench, database: Database) -> None:
    bench.child.start()
    pid = bench.child.pid
    for _ in range(2):
        post(database)
    bench.work()
    assert bench.child.pid == pid
    assert states(database) == ["superseded", "superseded", "production"]


def test_what_a_version_answered_once_is_not_asked_again(bench: Bench, database: Database) -> None:
    for _ in range(2):
        post(database)
    bench.work()
    with database.transaction() as s:
        counts = s.execute(text("select version_id, count(*) from probe_outcomes group by 1")).all()
    assert [count for _, count in counts] == [100, 100, 100]


def test_with_manual_promotion_a_pass_leaves_the_candidate_for_a_person(
    bench: Bench, database: Database
) -> None:
    before = production(database)
    job_id = post(database, promotion="manual")
    bench.work()
    job = read(database, job_id)
    assert (job.status, job.promoted) == ("succeeded", False)
    assert production(database) == before
    assert states(database) == ["production", "candidate"]


def test_a_refusal_leaves_production_and_keeps_candidate_and_report(bench: Bench, database: Database) -> None:
    before = production(database)
    job_id = post(database, score=fake.REFUSED)
    bench.work()
    job = read(database, job_id)
    assert job.status == "failed" and job.error is not None
    assert job.error["code"] == "regression_gate"
    assert production(database) == before
    assert states(database) == ["production", "refused"]
    with database.transaction() as s:
        assert reports.get(s, job_id)["verdict"]["decision"] == "refuse"


def test_predictors_are_told_ahead_of_what_is_promoted_and_of_nothing_else(
    bench: Bench, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str | None, str]] = []

    def warm(_: object, root_digest: str, overlay_digest: str | None) -> None:
        told.append((overlay_digest, production(database)))

    monkeypatch.setattr(score_stage, "warm", warm)
    before = production(database)
    post(database, score=fake.REFUSED)
    post(database, promotion="manual")
    job_id = post(database)
    bench.work()
    with database.transaction() as s:
        digest = s.get_one(Version, read(database, job_id).candidate_version_id).overlay_digest
    assert told == [(digest, before)]


@pytest.mark.parametrize("stage", ["edit", "score"])
def test_a_poison_job_ends_as_worker_lost_after_three_tries(
    bench: Bench, database: Database, stage: str
) -> None:
    job_id = post(database, **{stage: fake.KILLED})
    bench.work()
    job = read(database, job_id)
    assert job.status == "failed" and job.error is not None
    assert job.error["code"] == "worker_lost"
    assert "memory" in job.error["message"]
    assert tries(bench.settings.store_dir).count(fake.KILLED) == 3
    assert types(database, job_id).count("requeued") == 2


def test_what_the_database_will_never_take_ends_the_job_too(
    bench: Bench, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(s: Session, *_: object) -> None:
        s.execute(text("do $$ begin raise exception 'too long' using errcode = '54000'; end $$"))

    monkeypatch.setattr(versions, "publish_candidate", refuse)
    job_id = post(database)
    bench.work()
    error = read(database, job_id).error
    assert error is not None and error["code"] == "worker_lost"


def test_a_killed_child_is_replaced_and_the_job_succeeds(bench: Bench, database: Database) -> None:
    bench.child.start()
    pid = bench.child.pid
    job_id = post(database, edit=fake.KILLED_ONCE)
    bench.work()
    assert read(database, job_id).status == "succeeded"
    assert bench.child.pid != pid


def test_of_a_broken_child_only_the_kind_of_error_is_told(bench: Bench, database: Database) -> None:
    job_id = post(database, edit=fake.BROKEN)
    bench.work()
    error = read(database, job_id).error
    assert error is not None and "KeyError" in error["message"]
    assert "secret" not in str(error)


def test_an_order_that_can_not_be_carried_out_fails_at_once_and_the_child_stays(
    bench: Bench, database: Database
) -> None:
    bench.child.start()
    pid = bench.child.pid
    job_id = post(database, edit=fake.IMPOSSIBLE)
    bench.work()
    assert read(database, job_id).error == {"code": "editing_failed", "message": "Block 99 is not there."}
    assert tries(bench.settings.store_dir) == [fake.IMPOSSIBLE]
    assert bench.child.pid == pid


def test_a_version_whose_bytes_are_damaged_is_quarantined(bench: Bench, database: Database) -> None:
    first = post(database)
    bench.work()
    damaged = read(database, first).candidate_version_id
    with database.transaction() as s:
        s.execute(
            text("update versions set overlay_digest = :d where id = :v"), {"d": "a" * 64, "v": damaged}
        )
    job_id = post(database, edit=fake.CORRUPT)
    bench.work()
    error = read(database, job_id).error
    assert error is not None and error["code"] == "corrupt_checkpoint"
    assert states(database) == ["superseded", "quarantined"]


@pytest.mark.parametrize("stage", ["edit", "score"])
def test_a_cancel_ends_the_work_in_either_stage(bench: Bench, database: Database, stage: str) -> None:
    before = production(database)
    job_id = post(database, **{stage: fake.SLOW})

    def act() -> None:
        wait_until(lambda: fake.SLOW in tries(bench.settings.store_dir))
        cancel(database, job_id)

    acting = meanwhile(act)
    began = time.monotonic()
    bench.work()
    acting.join()
    assert read(database, job_id).status == "cancelled"
    assert time.monotonic() - began < 15
    assert production(database) == before
    assert "production" not in states(database)[1:]


def after_each(monkeypatch: pytest.MonkeyPatch, stage: str, act: Callable[[int], None]) -> None:
    """Have something happen between a child's result and what the worker writes of it."""
    original = Supervisor.carry_out
    count = 0

    def carry_out(self: Supervisor, claim: Claim, work: Stage, order: BaseModel) -> Done:
        nonlocal count
        done = original(self, claim, work, order)
        if work == stage:
            count += 1
            act(count)
        return done

    monkeypatch.setattr(Supervisor, "carry_out", carry_out)


@pytest.mark.parametrize("stage", ["edit", "score"])
def test_a_cancel_in_the_last_moment_still_counts(
    bench: Bench, database: Database, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    before = production(database)
    job_id = post(database)
    after_each(monkeypatch, stage, lambda _: cancel(database, job_id))
    bench.work()
    assert read(database, job_id).status == "cancelled"
    assert production(database) == before
    assert states(database)[1:] in ([], ["refused"])


def test_a_worker_that_is_fenced_off_writes_nothing(bench: Bench, database: Database) -> None:
    job_id = post(database, edit=fake.SLOW)
    other: list[Claim | None] = []

    def take_over() -> None:
        wait_until(lambda: fake.SLOW in tries(bench.settings.store_dir))
        with database.transaction() as s:
            s.execute(text("update jobs set lease_expires_at = clock_timestamp() - interval '1 s'"))
            leases.reap(s, 3)
        with database.transaction() as s:
            other.append(leases.claim(s, "edit", "other", 30.0))

    acting = meanwhile(take_over)
    bench.stages.answer("edit")
    acting.join()
    (claim,) = other
    assert claim is not None
    job = read(database, job_id)
    assert (job.status, job.worker, job.fence) == ("running", "other", claim.fence)
    assert types(database, job_id) == ["created", "claimed", "requeued", "claimed"]


def test_a_claim_lost_before_the_result_publishes_nothing(
    bench: Bench, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(database)

    def take_away(_: int) -> None:
        with database.transaction() as s:
            s.execute(text("update jobs set fence = fence + 1"))

    after_each(monkeypatch, "edit", take_away)
    bench.stages.answer("edit")
    assert states(database) == ["production"]


def test_when_production_moves_during_scoring_the_candidate_is_compared_again(
    bench: Bench, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(database)
    bench.work()
    job_id = post(database, base_version_id=production(database))

    def roll_back_once(count: int) -> None:
        if count == 1:
            with database.transaction() as s:
                aliases.rollback(s, models.get(s, "toy"), to=None, actor="t", reason=None)

    after_each(monkeypatch, "score", roll_back_once)
    bench.work()
    job = read(database, job_id)
    assert (job.status, job.promoted) == ("succeeded", True)
    assert production(database) == job.candidate_version_id
    assert types(database, job_id).count("verdict") == 2
    with database.transaction() as s:
        root = models.get(s, "toy").root_version_id
        assert reports.get(s, job_id)["compared_version"] == root


def test_a_production_that_never_rests_fails_the_job(
    bench: Bench, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(database)
    bench.work()
    job_id = post(database, base_version_id=production(database))

    def swing(_: int) -> None:
        with database.transaction() as s:
            model = models.get(s, "toy")
            versions_ = versions.list_versions(s, model).items
            other = next(v for v in versions_ if v.state == "superseded")
            aliases.set_alias(s, model, PRODUCTION, other.id, actor="t", reason="swing")

    after_each(monkeypatch, "score", swing)
    bench.work()
    error = read(database, job_id).error
    assert error is not None and error["code"] == "production_moved"


def test_a_worker_told_to_stop_gives_its_job_back_at_no_cost(bench: Bench, database: Database) -> None:
    job_id = post(database, edit=fake.SLOW)

    def stop() -> None:
        wait_until(lambda: fake.SLOW in tries(bench.settings.store_dir))
        bench.stopping.set()

    for _ in range(4):  # more often than a job may be tried
        (bench.settings.store_dir / "tries").unlink(missing_ok=True)
        bench.stopping.clear()
        acting = meanwhile(stop)
        bench.stages.answer("edit")
        acting.join()
        assert read(database, job_id).status == "running"
    assert bench.child.pid is None
    bench.stopping.clear()
    (bench.settings.store_dir / "go").touch()
    bench.work()
    assert read(database, job_id).status == "succeeded"


def test_the_lease_is_kept_for_as_long_as_the_work_takes(
    bench: Bench, database: Database, redis_url: str
) -> None:
    job_id = post(database, edit=fake.SLOW)
    sweeper = Sweeper(bench.settings, database, bench.bell, busy=lambda: True, on_deaf=lambda: None)

    def outlast() -> None:
        end = time.monotonic() + 2 * bench.settings.lease_seconds
        while time.monotonic() < end:
            sweeper.sweep()
            time.sleep(0.1)
        (bench.settings.store_dir / "go").touch()

    acting = meanwhile(outlast)
    bench.work()
    acting.join()
    assert read(database, job_id).status == "succeeded"
    assert "requeued" not in types(database, job_id)


def test_progress_is_recorded_but_not_more_than_twice_a_second(bench: Bench, database: Database) -> None:
    job_id = post(database, edit=fake.SLOW)

    def go_after_a_while() -> None:
        wait_until(lambda: fake.SLOW in tries(bench.settings.store_dir))
        time.sleep(2.0)
        (bench.settings.store_dir / "go").touch()

    meanwhile(go_after_a_while)
    bench.stages.answer("edit")
    with database.transaction() as s:
        count = s.scalar(text("select count(*) from job_events where type = 'progress'"))
    assert count is not None and 2 <= count <= 6
    assert read(database, job_id).progress["phase"] == "editing"
