"""Roots in the checkpoint store: whole, file for file, or an error."""

import os
from pathlib import Path

import pytest

from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint, MissingCheckpoint
from tests.support.stored import POSITIONS, UNKNOWN, a_root, damage, names


def test_a_root_comes_back_file_for_file(store: CheckpointStore, tmp_path: Path) -> None:
    source = a_root(tmp_path / "model")
    folder = store.root_folder(store.publish_root(source))
    for file in source.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_the_same_root_is_stored_once(store: CheckpointStore, tmp_path: Path) -> None:
    digest = store.publish_root(a_root(tmp_path / "one"))
    assert store.publish_root(a_root(tmp_path / "two")) == digest
    assert names(store, "roots") == [digest]


def test_a_published_root_may_be_published_from_its_own_folder(
    store: CheckpointStore, tmp_path: Path
) -> None:
    digest = store.publish_root(a_root(tmp_path / "model"))
    other = CheckpointStore(tmp_path / "other")
    assert other.publish_root(store.root_folder(digest)) == digest


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "root.json"])
@pytest.mark.parametrize("place", POSITIONS)
def test_a_root_with_one_flipped_bit_in_any_file_is_corrupt(
    store: CheckpointStore, tmp_path: Path, file: str, place: int
) -> None:
    digest = store.publish_root(a_root(tmp_path / "model"))
    damage(store.path / "roots" / digest / file, place)
    with pytest.raises(CorruptCheckpoint):
        store.root_folder(digest)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "root.json"])
def test_a_root_without_one_of_its_files_is_corrupt(
    store: CheckpointStore, tmp_path: Path, file: str
) -> None:
    digest = store.publish_root(a_root(tmp_path / "model"))
    (store.path / "roots" / digest / file).unlink()
    with pytest.raises(CorruptCheckpoint):
        store.root_folder(digest)


def test_a_root_with_a_truncated_file_is_corrupt(store: CheckpointStore, tmp_path: Path) -> None:
    digest = store.publish_root(a_root(tmp_path / "model"))
    os.truncate(store.path / "roots" / digest / "model.safetensors", 255)
    with pytest.raises(CorruptCheckpoint):
        store.root_folder(digest)


def test_an_unknown_root_is_missing(store: CheckpointStore) -> None:
    with pytest.raises(MissingCheckpoint):
        store.root_folder(UNKNOWN)


def test_publishing_a_root_whose_stored_files_are_damaged_says_so(
    store: CheckpointStore, tmp_path: Path
) -> None:
    source = a_root(tmp_path / "model")
    digest = store.publish_root(source)
    damage(store.path / "roots" / digest / "model.safetensors", 3)
    with pytest.raises(CorruptCheckpoint):
        store.publish_root(source)
