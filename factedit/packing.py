"""Overlays at about a byte a weight, exactly: how far the bits of each 16-bit weight lie from the root's.

Inside a ball around the root most weights move by a few units in the last place, so that the difference
of two bit patterns, taken as integers, fits in one byte. Where it doesn't, the weight's own bits are
listed beside it. `unpack(pack(raw)) == raw`, byte for byte: whatever digest the overlay has, it keeps.

What is packed is safetensors again; its metadata names the root.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

RootTensor = Callable[[str], Tensor | None]
"""The root's tensor of a name, on the CPU; None if it has none."""

WORTH = 0.9
"""An overlay is packed only if that leaves at most this share of its bytes."""
SEGMENT = 1 << 16
"""The places of listed weights are kept within segments of so many, at two bytes each."""
HALVES: Mapping[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16}
"""What is packed: the floats of 16 bits, by safetensors' names."""
ROOT = "packed_against"


class Unpackable(Exception):
    """Packed bytes that are damaged, or were packed against another root."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor in a safetensors file: where its data lies, from the file's start."""

    name: str
    dtype: str
    shape: list[int]
    start: int
    stop: int


def root_of(raw: bytes) -> str | None:
    """The digest of the root that these bytes are packed against; None if they are not packed."""
    try:
        found = _header(raw).get("__metadata__", {}).get(ROOT)
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def pack(raw: bytes, root: RootTensor, root_digest: str) -> bytes:
    """Pack the bytes of a safetensors file; they themselves if that would save too little."""
    entries, everything = _entries(raw), torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    parts = {"header": everything[: entries[0].start] if entries else everything}
    for place, entry in enumerate(entries):
        data = everything[entry.start : entry.stop]
        own = _like(root(entry.name), entry)
        found = {"whole": data} if own is None else _differences(data.view(torch.int16), own)
        if sum(part.nbytes for part in found.values()) > data.nbytes:
            found = {"whole": data}
        parts |= {f"{place}.{key}": part.clone() for key, part in found.items()}
    packed = save(parts, metadata={ROOT: root_digest})
    return packed if len(packed) <= WORTH * len(raw) else raw


def unpack(packed: bytes, root: RootTensor) -> bytes:
    """The bytes that were packed, if the root is the same: their digest tells whether they are.

    Raises:
        Unpackable
    """
    try:
        return _unpacked(load(packed), root)
    except (SafetensorError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise Unpackable(str(error)) from error


def _unpacked(parts: Mapping[str, Tensor], root: RootTensor) -> bytes:
    header = parts["header"].numpy().tobytes()
    # As long as the parts say, whatever a damaged header says.
    data = {name: part for name, part in parts.items() if name.endswith((".low", ".whole"))}
    size = sum(part.numel() * (2 if name.endswith(".low") else 1) for name, part in data.items())
    out = bytearray(len(header) + size)
    out[: len(header)] = header
    everything = torch.frombuffer(out, dtype=torch.uint8)
    for place, entry in enumerate(_entries(header)):
        target = everything[entry.start : entry.stop]
        if f"{place}.whole" in parts:
            target.copy_(parts[f"{place}.whole"])
            continue
        own = _like(root(entry.name), entry)
        if own is None:
            raise ValueError(f"the root has no such tensor as {entry.name}")
        bits = target.view(torch.int16)
        if bits.shape != own.shape or parts[f"{place}.low"].shape != own.shape:
            raise ValueError(f"{entry.name} is of another size than the root's")
        torch.add(own, parts[f"{place}.low"], out=bits)
        bits[_places(parts[f"{place}.counts"], parts[f"{place}.places"])] = parts[f"{place}.far"]
    return bytes(out)


def _differences(bits: Tensor, own: Tensor) -> dict[str, Tensor]:
    """The parts that a tensor's bit patterns become beside the root's; all int16 [n]."""
    difference = bits - own  # wraps around, and so does the sum
    low = difference.to(torch.int8)
    far = (difference != low).nonzero().squeeze(1)
    return {
        "low": low,
        "counts": torch.bincount(far // SEGMENT, minlength=1).to(torch.int32),
        "places": (far % SEGMENT - SEGMENT // 2).to(torch.int16),
        "far": bits[far],
    }


def _places(counts: Tensor, places: Tensor) -> Tensor:
    if int(counts.min()) < 0 or int(counts.long().sum()) != len(places):
        raise ValueError("the listed weights are not as many as is said")
    segments = torch.arange(len(counts)).repeat_interleave(counts.long())
    return segments * SEGMENT + places.long() + SEGMENT // 2


def _like(own: Tensor | None, entry: _Entry) -> Tensor | None:
    """The root's bit patterns, int16 [n], if there is such a tensor and its bytes lie as int16 may."""
    if own is None or own.dtype != HALVES.get(entry.dtype) or list(own.shape) != entry.shape:
        return None
    if own.numel() == 0 or entry.start % 2:
        return None
    return own.detach().contiguous().view(-1).view(torch.int16)


# safetensors' layout: the header's length in 8 bytes, the header in JSON, the data


def _header(raw: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    found = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    if not isinstance(found, dict):
        raise ValueError("no safetensors header")
    return found


def _entries(raw: bytes) -> list[_Entry]:
    """The tensors of a file, in the order of their data; the header alone is enough."""
    base = 8 + int.from_bytes(raw[:8], "little")
    found = []
    for name, said in _header(raw).items():
        if name != "__metadata__":
            start, stop = said["data_offsets"]
            found.append(_Entry(name, said["dtype"], said["shape"], base + start, base + stop))
    return sorted(found, key=lambda entry: (entry.start, entry.stop))
