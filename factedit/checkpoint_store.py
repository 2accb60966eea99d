"""Roots, overlays and manifests on disk: content-addressed, durable before named, verified at load.

    roots/<digest>/        a Hugging Face folder and its listing of SHA-256 digests (root.json)
    overlays/<digest>      safetensors, named by the SHA-256 of its bytes; packed, of the unpacked ones
    manifests/<version>.json
    statistics/<key>       safetensors that can be computed anew, with their SHA-256 before them
    tmp/                   what is being written; nothing in here is ever read (factedit.leftovers)

A name appears by one rename, after its bytes and its folder are on the disk. So a crash leaves
either the whole object or an unnamed leftover, never half of one.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from factedit.disk import StorageFull
from factedit.leftovers import UNFINISHED
from factedit.packing import RootTensor, Unpackable, pack, root_of, unpack

LISTING = "root.json"


class CheckpointError(Exception):
    """Whatever is wrong with a checkpoint in the store."""

    def __init__(self, digest: str, message: str) -> None:
        super().__init__(message)
        self.digest = digest


class CorruptCheckpoint(CheckpointError):
    """Bytes that no longer match their digest."""


class MissingCheckpoint(CheckpointError):
    """No such object in the store."""


@dataclass(frozen=True, slots=True)
class Published:
    """An object that is durable: its digest and its size in bytes."""

    digest: str
    bytes: int


class CheckpointStore:
    """The store under one folder; any number of processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._verified: set[str] = set()
        for folder in ("roots", "overlays", "manifests", "statistics", UNFINISHED):
            (path / folder).mkdir(parents=True, exist_ok=True)

    # Roots

    def publish_root(self, folder: Path) -> str:
        """Move a model folder on the same disk into the store, or copy one from another; its digest."""
        listing = {file.name: _file_digest(file) for file in sorted(folder.iterdir()) if file.is_file()}
        listing.pop(LISTING, None)
        digest = hashlib.sha256(_canonical(listing)).hexdigest()
        target = self.path / "roots" / digest
        if target.exists():
            self._verify_root(target, digest)
            return digest
        with self._scratch() as scratch:
            scratch.mkdir()
            for name in listing:
                shutil.copyfile(folder / name, scratch / name)
                _fsync(scratch / name)
            _write(scratch / LISTING, _canonical(listing))
            _fsync(scratch)
            self._name(scratch, target)
        return digest

    def root_folder(self, digest: str) -> Path:
        """The folder of a root, every file verified once in this process.

        Raises:
            MissingCheckpoint, CorruptCheckpoint
        """
        target = self.path / "roots" / _checked(digest)
        if not target.is_dir():
            raise MissingCheckpoint(digest, "The store has no such root.")
        if digest not in self._verified:
            self._verify_root(target, digest)
            self._verified.add(digest)
        return target

    def _verify_root(self, folder: Path, digest: str) -> None:
        try:
            raw = (folder / LISTING).read_bytes()
            if hashlib.sha256(raw).hexdigest() != digest:
                raise CorruptCheckpoint(digest, "The root's listing does not match its digest.")
            for name, expected in json.loads(raw).items():
                if _file_digest(folder / name) != expected:
                    raise CorruptCheckpoint(digest, f"{name} of the root does not match its digest.")
        except FileNotFoundError as error:
            raise CorruptCheckpoint(digest, "A file of the root is gone.") from error

    # Overlays

    def publish_overlay(self, tensors: Mapping[str, Tensor], root: str | None = None) -> Published:
        """Write an overlay durably; the same tensors written twice take their room once.

        `root`: the digest of the root in this store that it lies over. Near to it the overlay is packed
        (factedit.packing); its digest is the same either way.

        Raises:
            StorageFull: and nothing of the overlay remains.
        """
        raw = save_safetensors({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})
        digest = hashlib.sha256(raw).hexdigest()
        target = self.path / "overlays" / digest
        if not self._is_whole(digest):
            written = raw if root is None else pack(raw, self._root_tensors(root), root)
            with self._scratch() as scratch:
                _write(scratch, written)
                self._name(scratch, target)
        return Published(digest=digest, bytes=target.stat().st_size)

    def load_overlay(self, digest: str) -> dict[str, Tensor]:
        """Read an overlay; the bytes that were verified are the bytes that are returned.

        Raises:
            MissingCheckpoint; CorruptCheckpoint: the overlay, or the root that it is packed against.
        """
        return load_safetensors(self._overlay(digest))

    def _overlay(self, digest: str) -> bytes:
        """An overlay's bytes, unpacked and verified."""
        try:
            stored = (self.path / "overlays" / _checked(digest)).read_bytes()
        except FileNotFoundError as error:
            raise MissingCheckpoint(digest, "The store has no such overlay.") from error
        root = root_of(stored)
        raw = stored if root is None else self._unpacked(stored, root)
        if raw is None or hashlib.sha256(raw).hexdigest() != digest:
            if root is not None and _is_digest(root) and (self.path / "roots" / root).is_dir():
                self._verify_root(self.path / "roots" / root, root)
            raise CorruptCheckpoint(digest, "The overlay's bytes do not match its digest.")
        return raw

    def _unpacked(self, stored: bytes, root: str) -> bytes | None:
        try:
            return unpack(stored, self._root_tensors(root))
        except (Unpackable, MissingCheckpoint, SafetensorError, OSError):
            return None

    def _is_whole(self, digest: str) -> bool:
        try:
            self._overlay(digest)
        except CheckpointError:
            return False
        return True

    def _root_tensors(self, digest: str) -> RootTensor:
        """A root's tensors by name, each read from the disk when it is asked for.

        From the files and not from a loaded model, whose weights may be another version's just now.
        """
        files = sorted((self.path / "roots" / _checked(digest)).glob("*.safetensors"))
        opened: list[Any] = [safe_open(file, framework="pt") for file in files]
        holding = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

        def tensor(name: str) -> Tensor | None:
            return cast("Tensor", holding[name].get_tensor(name)) if name in holding else None

        return tensor

    # Manifests

    def publish_manifest(self, version_id: str, manifest: Mapping[str, Any]) -> None:
        """Write a version's manifest durably beside the row that names it."""
        target = self.path / "manifests" / f"{version_id}.json"
        with self._scratch() as scratch:
            _write(scratch, json.dumps(manifest, indent=2, sort_keys=True).encode())
            self._name(scratch, target)

    # Statistics

    def remember(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what was costly to compute, under any key. Raises StorageFull."""
        raw = save_safetensors({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})
        with self._scratch() as scratch:
            _write(scratch, hashlib.sha256(raw).digest() + raw)
            self._name(scratch, self._statistics(key))

    def recall(self, key: str) -> dict[str, Tensor] | None:
        """What was remembered under `key`; None if nothing was, or its bytes are damaged."""
        try:
            stored = self._statistics(key).read_bytes()
        except FileNotFoundError:
            return None
        size = hashlib.sha256().digest_size
        if hashlib.sha256(stored[size:]).digest() != stored[:size]:
            return None
        return load_safetensors(stored[size:])

    def _statistics(self, key: str) -> Path:
        return self.path / "statistics" / hashlib.sha256(key.encode()).hexdigest()

    # Durability

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        path = self.path / UNFINISHED / os.urandom(12).hex()
        try:
            yield path
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("The checkpoint store's disk is full.") from error
            raise
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _name(self, scratch: Path, target: Path) -> None:
        try:
            scratch.rename(target)
        except OSError as error:
            # Another process published the same folder first: its bytes are these bytes.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        _fsync(target.parent)


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _checked(digest: str) -> str:
    if not _is_digest(digest):
        raise MissingCheckpoint(digest, "That is no SHA-256 digest.")
    return digest


def _canonical(value: Mapping[str, str]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, raw: bytes) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
