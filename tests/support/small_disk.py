"""A small disk for a checkpoint store: a tmpfs, where one may mount it; what is full is truly full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BYTES = 64 << 20
BALLAST = "ballast"


@dataclass(frozen=True)
class SmallDisk:
    """The disk mounted at `path`."""

    path: Path

    def free(self) -> int:
        """The bytes that can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def with_room_for(self, left: int) -> Iterator[None]:
        """All is taken up but `left` bytes, rounded up to a page, for as long as the block lasts."""
        ballast = self.path / BALLAST
        try:
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.free() - left)
            yield
        finally:
            ballast.unlink()


@contextmanager
def small_disk(path: Path) -> Iterator[SmallDisk | None]:
    """A disk at `path`, a folder that does not exist yet; None, and no folder, where one may not mount."""
    path.mkdir(parents=True)
    options = f"size={BYTES},mode=0755"
    command = ["mount", "-t", "tmpfs", "-o", options, "factedit-test", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        path.rmdir()
        yield None
        return
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
