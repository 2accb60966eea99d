"""The checkpoint store: what comes out is what went in, or an error."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint, MissingCheckpoint
from tests.support.stored import POSITIONS, UNKNOWN, an_overlay, damage, names

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.bool)


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
