"""What a killed process leaves in a checkpoint store's folder of unfinished work. No torch here."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

UNFINISHED = "tmp"
"""The store's folder of what is being written; nothing in it is ever read."""


def clear(store: Path, seconds: float) -> list[str]:
    """Remove what nobody has written to for so long from the unfinished work; its names.

    Whoever is still at it after all can't publish it: the rename finds nothing.
    """
    folder, before, gone = store / UNFINISHED, time.time() - seconds, []
    for entry in folder.iterdir() if folder.exists() else ():
        with suppress(FileNotFoundError):  # its owner was faster
            if _last_written(entry) < before:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                gone.append(entry.name)
    return gone


def _last_written(entry: Path) -> float:
    inside = list(entry.rglob("*")) if entry.is_dir() else []
    return max(path.lstat().st_mtime for path in [entry, *inside])
