"""A crash or a failing disk while the checkpoint store publishes leaves nothing half-made."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from factedit.checkpoint_store import CheckpointStore
from factedit.disk import StorageFull
from tests.support.stored import a_root, an_overlay, names


class PowerCut(BaseException):
    """The process ends here; nothing catches it, and nothing is tidied up after it."""


def cut_power(*_: object, **__: object) -> NoReturn:
    raise PowerCut


def cut_power_at(monkeypatch: pytest.MonkeyPatch, call: str, count: int = 1) -> None:
    """The `count`-th `os.<call>` never returns; from then on no file is removed either."""
    real: Callable[..., object] = getattr(os, call)
    left = iter(range(1, count))

    def counted(*args: object, **kwargs: object) -> object:
        if next(left, None) is not None:
            return real(*args, **kwargs)
        monkeypatch.setattr(shutil, "rmtree", cut_power)
        monkeypatch.setattr(Path, "unlink", cut_power)
        return cut_power()

    monkeypatch.setattr(os, call, counted)


def publish_overlay(store: CheckpointStore, _: Path) -> object:
    return store.publish_overlay(an_overlay())


def publish_root(store: CheckpointStore, folder: Path) -> object:
    return store.publish_root(a_root(folder / "model"))


def publish_manifest(store: CheckpointStore, _: Path) -> object:
    store.publish_manifest("ver_1", {"version": "ver_1"})
    return None


def remember(store: CheckpointStore, _: Path) -> object:
    store.remember("covariance", an_overlay())
    return None


Publish = Callable[[CheckpointStore, Path], object]
KINDS = pytest.mark.parametrize(
    ("shelf", "publish"),
    [
        ("overlays", publish_overlay),
        ("roots", publish_root),
        ("manifests", publish_manifest),
        ("statistics", remember),
    ],
    ids=["overlay", "root", "manifest", "statistics"],
)


@KINDS
@pytest.mark.parametrize("call", ["rename", "fsync"], ids=["before it is named", "while it is written"])
def test_a_crash_leaves_no_object_visible(
    store: CheckpointStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shelf: str,
    publish: Publish,
    call: str,
) -> None:
    with monkeypatch.context() as patch:
        cut_power_at(patch, call)
        with pytest.raises(PowerCut):
            publish(store, tmp_path)
    assert names(store, shelf) == []


@pytest.mark.parametrize("count", range(1, 7))
def test_a_crash_at_any_sync_leaves_a_whole_root_or_none(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with monkeypatch.context() as patch:
        cut_power_at(patch, "fsync", count)
        with pytest.raises(PowerCut):
            publish_root(store, tmp_path)
    after = CheckpointStore(store.path)
    for digest in names(after, "roots"):
        assert (after.root_folder(digest) / "model.safetensors").read_bytes() == bytes(range(256))


@KINDS
def test_after_a_crash_the_same_object_can_be_published(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: str, publish: Publish
) -> None:
    with monkeypatch.context() as patch:
        cut_power_at(patch, "rename")
        with pytest.raises(PowerCut):
            publish(store, tmp_path)
    (tmp_path / "again").mkdir()
    publish(CheckpointStore(store.path), tmp_path / "again")
    assert len(names(store, shelf)) == 1


@KINDS
def test_a_name_appears_only_after_its_bytes_and_folder_were_synced(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: str, publish: Publish
) -> None:
    calls: list[str] = []
    for call in ("fsync", "rename"):
        real: Callable[..., object] = getattr(os, call)

        def noted(*args: object, _call: str = call, _real: Callable[..., object] = real) -> object:
            calls.append(_call)
            return _real(*args)

        monkeypatch.setattr(os, call, noted)
    publish(store, tmp_path)
    # A root is three files, their listing and a folder; everything else is one file.
    before = 5 if shelf == "roots" else 1
    assert calls == [*["fsync"] * before, "rename", "fsync"]


@KINDS
def test_a_full_disk_is_said_to_be_full_and_nothing_remains(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: str, publish: Publish
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFull):
            publish(store, tmp_path)
    assert names(store, shelf) == []
    assert names(store, "tmp") == []


@KINDS
def test_a_failing_disk_is_not_taken_for_a_full_one(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: str, publish: Publish
) -> None:
    def failing(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="Input/output error"):
            publish(store, tmp_path)
    assert names(store, shelf) == []
    assert names(store, "tmp") == []


def test_a_root_that_another_process_named_first_is_taken_as_it_is(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = CheckpointStore(store.path)
    source = a_root(tmp_path / "model")
    real = os.rename
    with monkeypatch.context() as patch:

        def after_the_rival(old: Path, new: Path) -> None:
            patch.setattr(os, "rename", real)
            rival.publish_root(source)
            real(old, new)

        patch.setattr(os, "rename", after_the_rival)
        digest = store.publish_root(source)
    assert names(store, "roots") == [digest]
    assert names(store, "tmp") == []
    assert store.root_folder(digest).is_dir()
