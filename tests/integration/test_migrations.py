"""Every migration goes up and down, with data in the tables; and the tables are what the code says."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from service import jobs, leases, probes
from service.database import Database
from service.errors import Conflict
from service.migrate import downgrade, upgrade
from service.tables import Base, Job
from tests.support.records import add_job, add_model, edit_row, publish


@pytest.fixture(autouse=True)
def newest_again(database: Database, database_url: str) -> Iterator[None]:
    """Whatever a test leaves behind, the next ones find the newest schema."""
    yield
    database.engine.dispose()
    upgrade(database_url)


def test_the_schema_is_the_tables_of_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_down_and_up_again_with_data_in_it(database: Database, database_url: str) -> None:
    with database.transaction() as s:
        model = add_model(s)
        job = add_job(s, model, [edit_row(erase=True, old_object="Paris")], supersedes=[{"edit_id": "e"}])
        claim = leases.claim(s, "edit", "w", 30)
        assert claim is not None
        publish(s, claim)
        add_job(s, model, reverts=job.id)
    database.engine.dispose()
    downgrade(database_url)
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    upgrade(database_url)
    assert set(Base.metadata.tables) < set(inspect(database.engine).get_table_names())


def test_reverts_and_erasures_come_to_a_database_that_has_jobs_and_go_again(
    database: Database, database_url: str
) -> None:
    with database.transaction() as s:
        job_id = add_job(s, add_model(s)).id
    database.engine.dispose()
    downgrade(database_url, "0001")
    columns = {column["name"] for column in inspect(database.engine).get_columns("jobs")}
    assert not columns & {"kind", "reverts_job_id", "supersedes"}
    assert "erase" not in {column["name"] for column in inspect(database.engine).get_columns("edits")}
    with database.engine.connect() as connection:
        assert connection.scalar(text("select new_object from edits")) == "Rome"
    upgrade(database_url)
    with database.transaction() as s:
        job = s.get_one(Job, job_id)
        assert (job.kind, job.reverts_job_id, job.supersedes) == ("edit", None, [])
        (edit,) = jobs.edits_of(s, job_id)
        assert (edit.erase, edit.kind, edit.new_object) == (False, "update", "Rome")


def test_words_too_long_for_an_index_come_with_the_new_schema_and_go_with_it(
    database: Database, database_url: str
) -> None:
    digits = random.Random(0).randbytes(2000).hex()
    row: dict[str, Any] = {"subject": None, "relation": None, "aliases": [], "candidates": []}
    with database.transaction() as s:
        model = add_model(s)
        long, short = probes.create(
            s, model, "user", [{**row, "prompt": words, "object": "x"} for words in (digits, "short")]
        )
        add_job(s, model, [edit_row(subject=digits)])
        assert model.root_version_id is not None
        answers = [
            {"probe_id": p.id, "answer": "x", "answer_right": True, "ranked_first": None}
            for p in (long, short)
        ]
        probes.store_outcomes(s, model.root_version_id, answers)
    database.engine.dispose()
    downgrade(database_url, "0002")
    with pytest.raises(IntegrityError), database.transaction() as s:
        s.execute(
            text(
                "insert into probes select 'prb_2', model_id, source, subject, relation, prompt, "
                "object, aliases, candidates, created_at from probes"
            )
        )
    database.engine.dispose()
    upgrade(database_url)
    with database.transaction() as s:
        assert [probe.id for probe in probes.of_model(s, model.id)] == [short.id]
        assert list(probes.outcomes(s, model.root_version_id)) == [short.id]
    with pytest.raises(Conflict), database.transaction() as s:
        probes.create(s, model, "user", [{**row, "prompt": "short", "object": "x"}])


def test_aliases_keep_their_history_from_the_newest_schema_on(database: Database, database_url: str) -> None:
    with database.transaction() as s:
        add_model(s)
    database.engine.dispose()
    downgrade(database_url, "0003")
    astray = text("update aliases set generation = generation + 1")
    with database.transaction() as s:
        s.execute(astray)
    database.engine.dispose()
    upgrade(database_url)
    with pytest.raises(Exception, match="not where its history says"), database.transaction() as s:
        s.execute(astray)


def test_the_database_itself_refuses_a_revert_of_nothing(database: Database) -> None:
    with database.transaction() as s:
        job_id = add_job(s, add_model(s)).id
    for change in ("kind = 'revert'", "reverts_job_id = id", "kind = 'undo', reverts_job_id = id"):
        with pytest.raises(Exception, match=r"revert_of_a_job|kind_word"), database.transaction() as s:
            s.execute(text(f"update jobs set {change} where id = :id"), {"id": job_id})
    with database.transaction() as s:
        assert len(jobs.edits_of(s, job_id)) == 1
