"""Workers whose wall clock is wrong, by libfaketime. How time passes is right, and so are files' times."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from tests.support.tools import tool
from tests.support.toy_stack import ToyStack, eventually
from workers.stack import threads
from workers.stack.stack import environment

SHARED_MEMORY = Path("/dev/shm")


def wrong_clock(offset: str) -> dict[str, str]:
    """The environment in which a process finds it `offset` later ("+2h") or earlier ("-2h") than it is."""
    asked = [tool("faketime", "faketime"), "-m", "-f", offset, "printenv", "LD_PRELOAD"]
    library = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    return {
        "LD_PRELOAD": library,
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@dataclass(frozen=True)
class OtherWorker:
    """A worker that runs until its block is left, or it is killed."""

    pid: int
    log: Path

    def holds(self, toy: ToyStack, job_id: str) -> bool:
        """Whether it is this worker that has the job now."""
        return toy.worker_of(job_id).endswith(f":{self.pid}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def said(self, event: str) -> list[datetime]:
        """When, by its own clock, it logged such an event."""
        lines = [dict(_fields(line)) for line in self.log.read_text().splitlines()]
        told = [line["timestamp"] for line in lines if line.get("event") == event]
        return [datetime.fromisoformat(timestamp) for timestamp in told]


def _fields(line: str) -> Iterator[tuple[str, str]]:
    for word in line.split():
        name, equals, value = word.partition("=")
        if equals:
            yield name, value


@contextmanager
def other_worker(toy: ToyStack, log: Path, variables: Mapping[str, str]) -> Iterator[OtherWorker]:
    """A worker of the stack's, with `variables` in its environment besides."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", "worker"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment(toy.settings), **threads.environment(1), **variables},
            start_new_session=True,
        )
    try:
        yield OtherWorker(process.pid, log)
    finally:
        process.kill()
        process.wait()
        eventually(lambda: not _group(process.pid), 10)
        for left in (f"faketime_shm_{process.pid}", f"sem.faketime_sem_{process.pid}"):
            (SHARED_MEMORY / left).unlink(missing_ok=True)  # libfaketime's, which it removes at a clean end


def _group(leader: int) -> list[int]:
    """What is left of a worker and its child, which dies with it."""
    return [pid for pid in psutil.pids() if _leader(pid) == leader]


def _leader(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
