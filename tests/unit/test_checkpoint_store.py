"""The checkpoint store: what comes out is what went in, or an error; a crash leaves nothing half-made."""

import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint, MissingCheckpoint
from factedit.disk import StorageFull

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.bool)
POSITIONS = tuple(range(20))
"""A stored file is damaged at so many places, from its first byte to its last."""
UNKNOWN = "0" * 64


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bits, NaNs among them, in any dtype and a small shape; empty ones and scalars too."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    bits = torch.tensor(list(raw), dtype=torch.uint8)
    return (bits % 2).bool().reshape(shape) if dtype == torch.bool else bits.view(dtype).reshape(shape)


OVERLAYS = st.dictionaries(st.text("abc.01", min_size=1, max_size=8), tensors(), max_size=3)


def same_bits(left: Tensor, right: Tensor) -> bool:
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*raw)


def an_overlay() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.layers.1.mlp.down_proj.weight": torch.randn(4, 6, generator=generator).to(torch.bfloat16),
        "model.layers.2.mlp.down_proj.weight": torch.randn(4, 6, generator=generator),
    }


def a_root(folder: Path) -> Path:
    """Files as a model's folder has them; the store does not care what they say."""
    folder.mkdir()
    (folder / "config.json").write_bytes(b'{"model_type": "llama", "vocab_size": 40}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "tokenizer.json").write_bytes(b'{"version": "1.0"}')
    return folder


def names(store: CheckpointStore, shelf: str) -> list[str]:
    return sorted(entry.name for entry in (store.path / shelf).iterdir())


def damage(file: Path, place: int, of: int = len(POSITIONS)) -> None:
    """Flip one bit of the byte that lies `place` parts of `of` into the file."""
    raw = bytearray(file.read_bytes())
    raw[round(place * (len(raw) - 1) / (of - 1))] ^= 1 << (place % 8)
    file.write_bytes(raw)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "store")


# What is stored


@settings(deadline=None)
@given(overlay=OVERLAYS)
def test_an_overlay_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, overlay: dict[str, Tensor]
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    loaded = store.load_overlay(store.publish_overlay(overlay).digest)
    assert loaded.keys() == overlay.keys()
    assert all(same_bits(loaded[name], overlay[name]) for name in overlay)


@settings(deadline=None)
@given(overlay=OVERLAYS)
def test_the_same_tensors_in_any_order_are_stored_once(
    tmp_path_factory: pytest.TempPathFactory, overlay: dict[str, Tensor]
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    first = store.publish_overlay(overlay)
    backwards = {name: overlay[name].clone() for name in reversed(overlay)}
    assert store.publish_overlay(backwards) == first
    assert names(store, "overlays") == [first.digest]


@settings(deadline=None)
@given(overlay=OVERLAYS.filter(bool), bit=st.integers(0, 7), place=st.integers(0, 10_000))
def test_an_overlay_with_one_flipped_bit_anywhere_is_never_loaded(
    tmp_path_factory: pytest.TempPathFactory, overlay: dict[str, Tensor], bit: int, place: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    digest = store.publish_overlay(overlay).digest
    file = store.path / "overlays" / digest
    raw = bytearray(file.read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    file.write_bytes(raw)
    with pytest.raises(CorruptCheckpoint) as caught:
        store.load_overlay(digest)
    assert caught.value.digest == digest


def test_a_strided_tensor_is_stored_as_it_reads(store: CheckpointStore) -> None:
    strided = torch.arange(12.0).reshape(3, 4).T
    loaded = store.load_overlay(store.publish_overlay({"w": strided}).digest)
    assert torch.equal(loaded["w"], strided)


def test_published_says_how_many_bytes_the_file_has(store: CheckpointStore) -> None:
    published = store.publish_overlay(an_overlay())
    assert (store.path / "overlays" / published.digest).stat().st_size == published.bytes


def test_other_tensors_have_another_digest(store: CheckpointStore) -> None:
    overlay = an_overlay()
    renamed = {f"{name}.": tensor for name, tensor in overlay.items()}
    assert store.publish_overlay(overlay).digest != store.publish_overlay(renamed).digest
    assert len(names(store, "overlays")) == 2


# What is damaged


@pytest.mark.parametrize("place", POSITIONS)
def test_an_overlay_damaged_from_its_first_to_its_last_byte_is_corrupt(
    store: CheckpointStore, place: int
) -> None:
    digest = store.publish_overlay(an_overlay()).digest
    damage(store.path / "overlays" / digest, place)
    with pytest.raises(CorruptCheckpoint):
        store.load_overlay(digest)


@pytest.mark.parametrize("kept", [0, 1, 8, 100, -1])
def test_a_truncated_overlay_is_corrupt(store: CheckpointStore, kept: int) -> None:
    digest = store.publish_overlay(an_overlay()).digest
    file = store.path / "overlays" / digest
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CorruptCheckpoint):
        store.load_overlay(digest)


def test_an_overlay_that_is_gone_is_missing(store: CheckpointStore) -> None:
    digest = store.publish_overlay(an_overlay()).digest
    (store.path / "overlays" / digest).unlink()
    with pytest.raises(MissingCheckpoint):
        store.load_overlay(digest)


@pytest.mark.parametrize("digest", ["", "abc", "../" * 20 + "etc", "g" * 64, UNKNOWN.upper()[:-1] + "A"])
def test_what_is_no_digest_is_missing_and_reads_no_file(store: CheckpointStore, digest: str) -> None:
    with pytest.raises(MissingCheckpoint):
        store.load_overlay(digest)
    with pytest.raises(MissingCheckpoint):
        store.root_folder(digest)


def test_publishing_a_damaged_overlay_again_repairs_it(store: CheckpointStore) -> None:
    published = store.publish_overlay(an_overlay())
    damage(store.path / "overlays" / published.digest, 7)
    assert store.publish_overlay(an_overlay()) == published
    assert store.load_overlay(published.digest).keys() == an_overlay().keys()


# Roots


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


# Crashes while publishing


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
def test_a_crash_before_an_object_is_named_leaves_nothing_visible(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: str, publish: Publish
) -> None:
    with monkeypatch.context() as patch:
        cut_power_at(patch, "rename")
        with pytest.raises(PowerCut):
            publish(store, tmp_path)
    assert names(store, shelf) == []


@KINDS
def test_a_crash_while_writing_leaves_nothing_visible(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: str, publish: Publish
) -> None:
    with monkeypatch.context() as patch:
        cut_power_at(patch, "fsync")
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


# Statistics


def test_what_was_remembered_is_recalled_under_its_own_key(store: CheckpointStore) -> None:
    store.remember("root / prompts", an_overlay())
    recalled = store.recall("root / prompts")
    assert recalled is not None
    assert all(same_bits(recalled[name], tensor) for name, tensor in an_overlay().items())
    assert store.recall("root / other prompts") is None


@pytest.mark.parametrize("place", POSITIONS)
def test_damaged_statistics_are_forgotten_rather_than_used(store: CheckpointStore, place: int) -> None:
    store.remember("key", an_overlay())
    (file,) = (store.path / "statistics").iterdir()
    damage(file, place)
    assert store.recall("key") is None
