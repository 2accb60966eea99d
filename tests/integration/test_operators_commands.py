"""What is wrong is told to the operator in a sentence that names the mend, and never as a traceback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
from sqlalchemy import make_url

from factedit.disk import StorageFull
from service import keys
from service.database import Database, DatabaseAway, NotMigrated
from service.settings import Settings
from workers import operations, registration

NOBODY = "postgresql://127.0.0.1:1/none"


@pytest.fixture(scope="module")
def empty_url(database_url: str) -> str:
    """A database without our schema."""
    url = make_url(database_url)
    with psycopg.connect(
        f"host={url.query['host']} user=postgres dbname=postgres", autocommit=True
    ) as server:
        server.execute("create database empty")
    return url.set(database="empty").render_as_string(hide_password=False)


def refusal(url: str, folder: Path, *arguments: str) -> str:
    """What a command says that can't be carried out."""
    environment = {**os.environ, "FACTEDIT_DATABASE_URL": url, "FACTEDIT_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "workers.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    said = done.stderr + done.stdout
    assert done.returncode == 1, said
    assert "Traceback" not in said
    assert said.startswith("factedit: ")
    return said


def test_the_api_on_a_database_without_our_schema_names_the_command(empty_url: str, tmp_path: Path) -> None:
    said = refusal(empty_url, tmp_path, "api")
    assert "`factedit db upgrade`" in said and said.count("\n") == 1


def test_the_api_without_a_key_names_the_command(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    said = refusal(database_url, tmp_path, "api")
    assert "`factedit key create" in said and said.count("\n") == 1


@pytest.mark.parametrize("command", [("key", "create", "me", "--scopes", "admin"), ("db", "upgrade")])
def test_a_database_that_does_not_answer_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    assert "The database does not answer" in refusal(NOBODY, tmp_path, *command)


def test_a_key_for_a_database_without_our_schema_is_refused(empty_url: str) -> None:
    database = Database(empty_url)
    with pytest.raises(NotMigrated), database.transaction() as s:
        keys.create(s, "me", ["admin"])
    database.close()


@pytest.mark.parametrize(
    "error", [StorageFull("The checkpoint store's disk is full."), DatabaseAway("It is away.")]
)
def test_a_model_that_there_is_no_room_for_is_told(
    error: Exception, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(registration, "register", refuse)
    monkeypatch.setattr(
        operations, "get_settings", lambda: Settings(data_dir=tmp_path, database_url=database_url)
    )
    with pytest.raises(SystemExit, match=str(error)), operations.complaints():
        operations.add_model("toy", "folder:toy")
