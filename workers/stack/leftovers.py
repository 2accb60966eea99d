"""Nothing is left behind: one stack a data folder, and an end for whatever a killed one left."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from workers.stack.errors import StackError

MARK = "FACTEDIT_STACK"


class AlreadyRunning(StackError):
    """Another stack holds the data folder."""


def mark(data_dir: Path) -> dict[str, str]:
    """The environment that marks a process, and all it starts, as of this folder's stack."""
    return {MARK: str(data_dir.resolve())}


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel lets go of when we die, and end what was left behind.

    Raises:
        AlreadyRunning: another process holds it.
    """
    with (data_dir / "stack.lock").open("a") as lock:
        if not _locked(lock):
            raise AlreadyRunning(f"A stack already runs in {data_dir}.")
        end_marked(data_dir)
        try:
            yield
        finally:
            end_marked(data_dir)


def _locked(lock: IO[str]) -> bool:
    for _ in range(10):  # `is_running` of another process holds the lock for an instant
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def is_running(data_dir: Path) -> bool:
    """Whether some process holds the folder's lock."""
    try:
        with (data_dir / "stack.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def marked(data_dir: Path) -> list[psutil.Process]:
    """The processes that carry this folder's mark, but this one and those it descends from."""
    value = str(data_dir.resolve())
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in ours and process.environ().get(MARK) == value:
                found.append(process)
        except (psutil.Error, OSError):  # gone by now, or another user's
            continue
    return found


def end_marked(data_dir: Path, seconds: float = 5.0) -> int:
    """End the processes marked for this folder; how many there were.

    Only those whose parent is gone are asked: PostgreSQL's own children take orders from it alone.
    """
    found = marked(data_dir)
    pids = {process.pid for process in found}
    for process in found:
        with suppress(psutil.Error):
            if process.ppid() not in pids:
                # To PostgreSQL SIGINT says: close the files and go; SIGTERM: wait for the clients.
                process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    for process in _still_there(found, seconds):
        with suppress(psutil.Error):
            process.kill()
    _still_there(found, seconds)
    return len(found)


def _still_there(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended after at most `seconds`. A zombie has, whoever may bury it."""
    end = time.monotonic() + seconds
    while True:
        processes = [process for process in processes if _lives(process)]
        if not processes or time.monotonic() > end:
            return processes
        time.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
