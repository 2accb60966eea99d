"""Packed overlays: fewer bytes on the disk, and not one bit of a weight or a digest is another."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file
from torch import Tensor

from factedit import packing
from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint
from factedit.packing import SEGMENT, Unpackable, pack, root_of, unpack

DIGEST = "d" * 64
BITS = st.integers(-(2**15), 2**15 - 1)
DTYPES = (torch.bfloat16, torch.float16, torch.int16, torch.float32, torch.uint8)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(a root, an overlay): any bits, NaNs among them; like shapes and dtypes for the most part."""
    root, overlay = {}, {}
    for name in draw(st.lists(st.text("ab.", min_size=1, max_size=4), unique=True, max_size=3)):
        dtype = draw(st.sampled_from(DTYPES))
        own = draw(st.lists(BITS, max_size=6))
        new = [
            draw(st.one_of(BITS, st.integers(max(-(2**15), b - 200), min(2**15 - 1, b + 200)))) for b in own
        ]
        made = [_made(bits, dtype) for bits in (own, new)]
        if draw(st.integers(0, 5)):
            root[name] = made[0]
        overlay[name] = made[1][: draw(st.sampled_from((99, 99, 99, 2)))]
    return root, overlay


def _made(bits: list[int], dtype: torch.dtype) -> Tensor:
    tensor = torch.tensor(bits, dtype=torch.int16)
    return tensor.to(dtype) if dtype in (torch.float32, torch.uint8) else tensor.view(dtype)


@pytest.fixture(scope="module", autouse=True)
def whatever_it_saves() -> Iterator[None]:
    """Pack however little it is worth: tensors here are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WORTH", float("inf"))
        yield


def moved(root: Mapping[str, Tensor], units: int, seed: int = 0) -> dict[str, Tensor]:
    """Each weight up to so many units in the last place from the root's."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in root.items():
        by = torch.randint(-units, units + 1, tensor.shape, generator=generator)
        found[name] = (tensor.view(torch.int16) + by).to(torch.int16).view(tensor.dtype)
    return found


def a_root(rows: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"blocks.{i}": torch.randn(rows, 64, generator=generator).to(torch.bfloat16) for i in range(3)}


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and save(dict(left)) == save(dict(right))


# Bytes


@settings(deadline=None, max_examples=300)
@given(pair=pairs())
def test_what_was_packed_is_unpacked_byte_for_byte(pair: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    root, overlay = pair
    raw = save(overlay, metadata={"format": "pt"})
    packed = pack(raw, root.get, DIGEST)
    assert root_of(packed) == DIGEST and root_of(raw) is None
    assert unpack(packed, root.get) == raw


def test_weights_that_moved_far_are_listed_wherever_they_stand() -> None:
    root = {"w": torch.zeros(3 * SEGMENT + 5, dtype=torch.bfloat16)}
    bits = torch.zeros(len(root["w"]), dtype=torch.int16)
    for place in (0, SEGMENT - 1, SEGMENT, 3 * SEGMENT - 1, 3 * SEGMENT + 4):
        bits[place] = -32768 + place % 7
    bits[5:7] = torch.tensor([127, -128])
    raw = save({"w": bits.view(torch.bfloat16)})
    packed = pack(raw, root.get, DIGEST)
    assert len(load(packed)["0.far"]) == 5
    assert unpack(packed, root.get) == raw
    assert len(packed) < 0.51 * len(raw)


def test_what_saves_too_little_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WORTH", 0.9)
    root = a_root()
    near, far = save(moved(root, 100)), save(moved(root, 10_000))
    assert len(pack(near, root.get, DIGEST)) < 0.6 * len(near)
    assert pack(far, root.get, DIGEST) == far
    assert pack(near, lambda _: None, DIGEST) == near


def test_another_root_is_told() -> None:
    root = a_root()
    packed = pack(save(moved(root, 9)), root.get, DIGEST)
    for other in ({}, {name: t[:1] for name, t in root.items()}, {n: t.float() for n, t in root.items()}):
        with pytest.raises(Unpackable):
            unpack(packed, other.get)


def test_a_damaged_count_of_listed_weights_takes_no_memory() -> None:
    root = a_root()
    parts = load(pack(save(moved(root, 140)), root.get, DIGEST))
    for count in (2**31 - 1, -1):
        damaged = parts | {"0.counts": torch.tensor([count], dtype=torch.int32)}
        with pytest.raises(Unpackable):
            unpack(save(damaged, metadata={packing.ROOT: DIGEST}), root.get)


# In the store


@pytest.fixture
def rooted(tmp_path: Path) -> tuple[CheckpointStore, str, dict[str, Tensor]]:
    """A store with a root in two files, the root's digest, and its tensors."""
    folder, root = tmp_path / "root", a_root()
    folder.mkdir()
    save_file({name: root[name] for name in ("blocks.0", "blocks.1")}, folder / "model-1.safetensors")
    save_file({"blocks.2": root["blocks.2"]}, folder / "model-2.safetensors")
    (folder / "config.json").write_text("{}")
    store = CheckpointStore(tmp_path / "store")
    return store, store.publish_root(folder), root


Rooted = tuple[CheckpointStore, str, dict[str, Tensor]]


def test_a_packed_overlay_has_the_digest_it_would_have_and_fewer_bytes(
    rooted: Rooted, tmp_path: Path
) -> None:
    store, digest, root = rooted
    overlay = moved(root, 140)
    packed = store.publish_overlay(overlay, digest)
    plain = CheckpointStore(tmp_path / "other").publish_overlay(overlay)
    assert packed.digest == plain.digest
    assert packed.bytes < 0.85 * plain.bytes
    assert (store.path / "overlays" / packed.digest).stat().st_size == packed.bytes
    assert same_bits(store.load_overlay(packed.digest), overlay)


def test_an_overlay_that_was_not_packed_is_read_as_ever(rooted: Rooted) -> None:
    store, digest, root = rooted
    overlay = moved(root, 140)
    plain = store.publish_overlay(overlay)
    assert same_bits(store.load_overlay(plain.digest), overlay)
    assert store.publish_overlay(overlay, digest) == plain  # it is there already


def test_tensors_that_the_root_does_not_have_are_stored_whole(rooted: Rooted) -> None:
    store, digest, root = rooted
    overlay = moved(root, 9) | {
        "memory.keys": torch.randn(3, 5),
        "context.text": torch.arange(7, dtype=torch.uint8),
    }
    published = store.publish_overlay(overlay, digest)
    assert root_of((store.path / "overlays" / published.digest).read_bytes()) == digest
    assert same_bits(store.load_overlay(published.digest), overlay)


@settings(deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_never_becomes_another_weight(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    root, folder = a_root(rows=4), store.path / "tmp" / "root"
    folder.mkdir()
    save_file(root, folder / "model.safetensors")
    overlay = moved(root, 140)
    digest = store.publish_overlay(overlay, store.publish_root(folder)).digest
    file = store.path / "overlays" / digest
    raw = bytearray(file.read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    file.write_bytes(raw)
    try:
        loaded = store.load_overlay(digest)
    except CorruptCheckpoint as error:
        assert error.digest == digest
        assert store.publish_overlay(overlay).digest == digest  # written anew
        loaded = store.load_overlay(digest)
    assert same_bits(loaded, overlay)


def test_a_damaged_root_is_not_laid_at_the_overlays_door(rooted: Rooted) -> None:
    store, root_digest, root = rooted
    published = store.publish_overlay(moved(root, 9), root_digest)
    file = store.path / "roots" / root_digest / "model-1.safetensors"
    file.chmod(0o644)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptCheckpoint) as caught:
        store.load_overlay(published.digest)
    assert caught.value.digest == root_digest


def test_without_its_root_an_overlay_is_no_overlay(rooted: Rooted) -> None:
    store, root_digest, root = rooted
    published = store.publish_overlay(moved(root, 9), root_digest)
    (store.path / "roots" / root_digest).rename(store.path / "gone")
    with pytest.raises(CorruptCheckpoint) as caught:
        store.load_overlay(published.digest)
    assert caught.value.digest == published.digest
