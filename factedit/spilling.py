"""What is computed once for each example of an edit: kept in memory up to a limit, beyond it in a file.

It is most of what grows with a batch. The file has no name: it is gone with the set of examples, or with the
process, however that ends.
"""

import errno
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from factedit.disk import StorageFull

MAX_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Room:
    """How many bytes a set of examples may keep in memory, and the folder of its file; None: the system's."""

    max_bytes: int = MAX_BYTES
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class _InFile:
    offset: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@dataclass(slots=True)
class _Used:
    """Of a room, in memory."""

    bytes: int = 0


class Spilling:
    """Tensors by the place of their example.

    Attributes:
        in_memory, in_file: bytes.
    """

    def __init__(self, room: Room, beside: "Spilling | None" = None) -> None:
        """`beside`: what shares the room."""
        self._room = room
        self._used: _Used = _Used() if beside is None else beside._used
        self._kept: dict[int, Tensor] = {}
        self._spilt: dict[int, _InFile] = {}
        self._file: IO[bytes] | None = None
        self.in_memory = self.in_file = 0

    def __bool__(self) -> bool:
        return bool(self._kept or self._spilt)

    def update(self, tensors: Mapping[int, Tensor]) -> None:
        """Keep these too, each for the first time.

        Raises:
            StorageFull: the disk has no room for what does not fit in memory.
        """
        for place, tensor in tensors.items():
            if self._used.bytes + tensor.nbytes <= self._room.max_bytes:
                # A view would keep the whole of which the rest is in the file.
                self._kept[place] = tensor.clone() if self._file else tensor
                self.in_memory += tensor.nbytes
                self._used.bytes += tensor.nbytes
            else:
                self._spilt[place] = self._written(tensor)

    def __getitem__(self, place: int) -> Tensor:
        """As it was kept, on its device."""
        kept = self._kept.get(place)
        return self._read(self._spilt[place]) if kept is None else kept

    def length(self, place: int) -> int:
        """Of its first dimension."""
        kept = self._kept.get(place)
        return int((self._spilt[place] if kept is None else kept).shape[0])

    def _written(self, tensor: Tensor) -> _InFile:
        where = _InFile(self.in_file, tensor.shape, tensor.dtype, tensor.device)
        raw = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        try:
            if self._file is None:
                # Closed with the last reference to it.
                self._file = tempfile.TemporaryFile(dir=self._room.folder, buffering=0)  # noqa: SIM115
            view = raw.data
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("The disk has no room for what an edit keeps beside memory.") from error
            raise
        self.in_file += tensor.nbytes
        return where

    def _read(self, where: _InFile) -> Tensor:
        found = torch.empty(where.shape, dtype=where.dtype)
        raw = found.reshape(-1).view(torch.uint8).numpy().data
        assert self._file is not None
        offset = where.offset
        while len(raw):
            count = os.preadv(self._file.fileno(), [raw], offset)
            if count == 0:
                raise OSError(errno.EIO, "what was kept of an edit is cut short")
            raw, offset = raw[count:], offset + count
        return found.to(where.device)
