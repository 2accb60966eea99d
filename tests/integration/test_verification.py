"""What becomes of a version whose bytes were damaged and are whole again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint, MissingCheckpoint
from service import aliases, jobs, leases, versions
from service.database import Database
from service.errors import NotFound
from service.ids import new_id
from service.tables import Model, Version
from tests.support.api import candidate_of, claimed, promoted_version, refused_version, state_of
from tests.support.records import add_job, add_model
from workers.verification import verify


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "store")


@pytest.fixture
def overlay(store: CheckpointStore) -> str:
    return store.publish_overlay({"w": torch.arange(6.0)}).digest


@pytest.fixture
def model(database: Database, store: CheckpointStore, tmp_path: Path) -> Model:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with database.transaction() as s:
        return add_model(s, root_digest=store.publish_root(folder))


def superseded(database: Database, model: Model, digest: str) -> Version:
    version = promoted_version(database, model, digest)
    promoted_version(database, model)
    return version


def waiting(database: Database, model: Model, digest: str) -> Version:
    """A candidate that has passed its gate and waits for a person."""
    with database.transaction() as s:
        add_job(s, model, promotion="manual")
    version = candidate_of(database, claimed(database), digest)
    scoring = claimed(database, "score")
    with database.transaction() as s:
        assert leases.succeed(s, scoring, promoted=False)
    return version


def quarantine(database: Database, digest: str) -> None:
    with database.transaction() as s:
        assert versions.quarantine_digest(s, digest)


def again(store: CheckpointStore) -> CheckpointStore:
    """The same store as a process sees it that has verified nothing yet."""
    return CheckpointStore(store.path)


@pytest.mark.parametrize("make", [promoted_version, superseded, refused_version, waiting])
def test_a_version_that_is_whole_again_is_what_it_was(
    database: Database,
    store: CheckpointStore,
    model: Model,
    overlay: str,
    make: Callable[[Database, Model, str], Version],
) -> None:
    version = make(database, model, overlay)
    before = state_of(database, version.id)
    assert verify(database, store, "toy", version.id).state == before
    quarantine(database, overlay)
    assert state_of(database, version.id) == "quarantined"
    assert verify(database, store, "toy", version.id).state == before
    assert state_of(database, version.id) == before


def test_what_happened_during_the_quarantine_counts(
    database: Database, store: CheckpointStore, model: Model, overlay: str
) -> None:
    production = promoted_version(database, model, overlay)
    with database.transaction() as s:
        job_id = add_job(s, model).id
    candidate = candidate_of(database, claimed(database), overlay)
    quarantine(database, overlay)
    with database.transaction() as s:
        aliases.rollback(s, model, to=None, actor="t", reason=None)
    with database.transaction() as s:
        jobs.request_cancel(s, job_id)
    assert verify(database, store, "toy", production.id).state == "superseded"
    assert verify(database, store, "toy", candidate.id).state == "refused"


def test_a_root_is_verified_by_its_name(database: Database, store: CheckpointStore, model: Model) -> None:
    quarantine(database, model.root_digest)
    assert verify(database, store, "toy", "root").state == "production"


def test_a_version_that_is_still_damaged_stays_in_quarantine_and_one_that_serves_enters_it(
    database: Database, store: CheckpointStore, model: Model, overlay: str
) -> None:
    version = promoted_version(database, model, overlay)
    file = store.path / "overlays" / overlay
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    for _ in range(2):
        with pytest.raises(CorruptCheckpoint):
            verify(database, again(store), "toy", version.id)
        assert state_of(database, version.id) == "quarantined"


def test_an_overlay_over_a_damaged_root_is_not_served_either(
    database: Database, store: CheckpointStore, model: Model, overlay: str
) -> None:
    version = promoted_version(database, model, overlay)
    quarantine(database, overlay)
    (store.path / "roots" / model.root_digest / "config.json").write_text("[]")
    with pytest.raises(CorruptCheckpoint):
        verify(database, again(store), "toy", version.id)
    assert state_of(database, version.id) == "quarantined"
    assert state_of(database, model.root_version_id or "") == "quarantined"


def test_an_object_that_is_not_in_this_store_condemns_nothing(
    database: Database, store: CheckpointStore, model: Model, tmp_path: Path
) -> None:
    with pytest.raises(MissingCheckpoint):
        verify(database, CheckpointStore(tmp_path / "other"), "toy", "root")
    assert state_of(database, model.root_version_id or "") == "production"


def test_what_is_not_there_is_not_found(database: Database, store: CheckpointStore, model: Model) -> None:
    for name, version in (("toi", "root"), ("toy", new_id("ver"))):
        with pytest.raises(NotFound):
            verify(database, store, name, version)


def test_the_operators_command_says_what_is_damaged_and_mends_what_is_whole(
    database: Database, database_url: str, store: CheckpointStore, model: Model, overlay: str, tmp_path: Path
) -> None:
    version = promoted_version(database, model, overlay)
    file = store.path / "overlays" / overlay
    backup = shutil.copy(file, tmp_path / "backup")
    file.write_bytes(b"damaged")

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "workers.cli", "version", "verify", "toy", version.id]
        environment = {
            **os.environ,
            "FACTEDIT_DATABASE_URL": database_url,
            "FACTEDIT_DATA_DIR": str(store.path.parent),
        }
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    said = run()
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert overlay in said.stderr and "backup" in said.stderr
    assert state_of(database, version.id) == "quarantined"
    shutil.copy(backup, file)
    said = run()
    assert (said.returncode, "is whole" in said.stdout) == (0, True)
    assert state_of(database, version.id) == "production"
