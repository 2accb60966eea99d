"""What is old in a store's unfinished work is removed, and nothing else."""

import os
import time
from pathlib import Path

import pytest
import torch

from factedit import leftovers
from factedit.checkpoint_store import CheckpointStore

DAY = 24 * 3600.0


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def age(path: Path, seconds: float = 2 * DAY) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def unfinished(store: CheckpointStore, name: str) -> Path:
    return store.path / leftovers.UNFINISHED / name


def test_old_files_and_folders_go_and_young_ones_stay(store: CheckpointStore) -> None:
    for name in ("old", "young"):
        unfinished(store, name).write_bytes(b"half an overlay")
        folder = unfinished(store, f"{name}-folder")
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text("{}")
    age(unfinished(store, "old"))
    for path in ("model/config.json", "model", ""):
        age(unfinished(store, "old-folder") / path)
    assert sorted(leftovers.clear(store.path, DAY)) == ["old", "old-folder"]
    left = sorted(path.name for path in unfinished(store, "").iterdir())
    assert left == ["young", "young-folder"]


@pytest.mark.parametrize("touched", ["", "model", "model/weights"])
def test_a_folder_in_which_anything_is_written_is_in_use(store: CheckpointStore, touched: str) -> None:
    folder = unfinished(store, "big")
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(b"so far")
    for path in {"", "model", "model/weights"} - {touched}:
        age(folder / path)
    assert leftovers.clear(store.path, DAY) == []
    assert (folder / "model" / "weights").exists()


def test_what_is_published_stays_however_old_it_is(store: CheckpointStore) -> None:
    digest = store.publish_overlay({"w": torch.ones(3)}).digest
    store.publish_manifest("ver_1", {})
    for file in store.path.rglob("*"):
        age(file)
    assert leftovers.clear(store.path, DAY) == []
    assert store.load_overlay(digest).keys() == {"w"}
    assert (store.path / "manifests" / "ver_1.json").exists()


def test_whoever_was_asleep_for_a_day_publishes_nothing_half(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store._name

    def fall_asleep(scratch: Path, target: Path) -> None:
        age(scratch)
        leftovers.clear(store.path, DAY)
        name(scratch, target)

    monkeypatch.setattr(store, "_name", fall_asleep)
    with pytest.raises(FileNotFoundError):
        store.publish_overlay({"w": torch.ones(3)})
    assert list((store.path / "overlays").iterdir()) == []


def test_where_there_is_no_store_there_is_nothing_to_clear(tmp_path: Path) -> None:
    assert leftovers.clear(tmp_path / "none", DAY) == []
