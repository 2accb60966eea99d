"""What the database's errors count as: it is away, or something is wrong."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from service import jobs
from service.database import Database, DatabaseAway, NotMigrated
from tests.support.api import problem, serve
from tests.support.tcp import port_before

PASSING = ("08006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "57P03")
LASTING = ("54000", "58030", "22021", "XX000")


def say(s: Session, state: str) -> None:
    """Have the database say that it is in this state."""
    s.execute(text(f"do $$ begin raise exception 'so be it' using errcode = '{state}'; end $$"))


@pytest.mark.parametrize("state", PASSING)
def test_what_passes_by_itself_is_a_database_that_is_away(database: Database, state: str) -> None:
    with pytest.raises(DatabaseAway), database.transaction() as s:
        say(s, state)


@pytest.mark.parametrize("state", LASTING)
def test_what_will_be_the_same_the_next_time_is_not(database: Database, state: str) -> None:
    with pytest.raises(DBAPIError), database.transaction() as s:
        say(s, state)


def test_what_is_not_there_is_a_schema_that_is_missing(database: Database) -> None:
    for statement in ("select * from no_such_table", "select no_such_column from jobs"):
        with pytest.raises(NotMigrated, match="db upgrade"), database.transaction() as s:
            s.execute(text(statement))


def test_a_connection_that_is_cut_is_a_database_that_is_away(database: Database) -> None:
    with pytest.raises(DatabaseAway, match="AdminShutdown"), database.transaction() as s:
        s.execute(text("select pg_terminate_backend(pg_backend_pid())"))
    database.ping()


def test_a_lock_that_is_not_to_be_had_in_time_is_too(database: Database) -> None:
    with database.transaction() as holder:
        holder.execute(text("lock table jobs"))
        with pytest.raises(DatabaseAway, match="LockNotAvailable"), database.transaction() as s:
            s.execute(text("set local lock_timeout = 50"))
            s.execute(text("lock table jobs"))


def test_whoever_is_frozen_amid_a_transaction_loses_it_and_its_locks(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.database.MOST_IDLE_MS", 200)
    frozen = Database(database_url)
    locked = []
    with pytest.raises(DatabaseAway), frozen.transaction() as s:
        s.execute(text("lock table jobs"))
        with database.transaction() as other:
            other.execute(text("lock table jobs"))
            locked.append(other)
        s.execute(text("select 1"))
    assert locked
    frozen.ping()
    frozen.close()


def test_a_server_that_is_not_there_is_away() -> None:
    database = Database("postgresql://127.0.0.1:1/none")
    with pytest.raises(DatabaseAway):
        database.ping()


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [("57P01", 503, "database_away"), ("54000", 500, "internal"), ("42P01", 500, "internal")],
)
def test_only_a_database_that_is_away_is_worth_a_second_try(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, state: str, status: int, code: str
) -> None:
    def broken(s: Session, **_: Any) -> None:
        say(s, state)

    monkeypatch.setattr(jobs, "list_jobs", broken)
    with serve(database, database_url) as api:
        response = api.http.get("/jobs")
        problem(response, status, code)
        assert ("retry-after" in response.headers) == (status == 503)


def test_a_host_that_vanishes_is_noticed_soon(database_url: str) -> None:
    folder = make_url(database_url).query["host"]
    assert isinstance(folder, str)
    with port_before(Path(folder) / ".s.PGSQL.5432") as port:
        database = Database(f"postgresql://postgres@127.0.0.1:{port}/factedit")
        with database.transaction() as s:
            driver = s.connection().connection.driver_connection
            assert driver is not None
            with socket.socket(fileno=os.dup(driver.fileno())) as tcp:
                assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                options = (
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )
                assert [tcp.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [5, 2, 3, 10_000]
        database.close()
