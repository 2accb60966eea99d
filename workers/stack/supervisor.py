"""Keeps parts running: starts them, restarts what dies with growing waits, ends them in order."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import structlog

from workers.stack.errors import StackError
from workers.stack.part import Part, Running

TICK_SECONDS = 0.05
DEATHS_WHILE_STARTING = 3


class PartFailed(StackError):
    """A part did not come up; the text has the end of its log."""

    def __init__(self, running: Running, why: str) -> None:
        super().__init__(f"{running.part.name} {why}. The end of {running.log}:\n{running.tail()}")
        self.part = running.part.name


class Supervisor:
    """Used as `with Supervisor(…) as s: s.start(part, …)`; leaving ends all parts, the last one first.

    What happens is written to `stack.log` beside the parts' own logs. One thread starts, watches and
    ends the processes, from entering until leaving: the kernel ends a child when the *thread* that
    started it ends.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = environment
        self._parts: list[Running] = []
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep_all, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._file = (self._logs / "stack.log").open("a", buffering=1)
        self._log = _logger(self._file)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        while self._thread.is_alive():
            with suppress(KeyboardInterrupt):  # each part has its time; then it is over anyway
                self._thread.join()
        self._file.close()

    def start(self, *parts: Part) -> None:
        """Start parts side by side and return when all are ready.

        Raises:
            PartFailed: one kept dying, or was not ready within its `ready_seconds`.
        """
        started = [Running(part, self._logs / f"{part.name}.log", self._environment) for part in parts]
        self._parts.extend(started)
        begun = time.monotonic()
        for running in started:
            while not running.ready():
                if running.deaths >= DEATHS_WHILE_STARTING:
                    raise PartFailed(running, f"ended {running.deaths} times while starting")
                if time.monotonic() - begun > running.part.ready_seconds:
                    raise PartFailed(running, f"was not ready within {running.part.ready_seconds:g} s")
                if not self._thread.is_alive():
                    raise RuntimeError("the supervisor's thread has ended")
                time.sleep(TICK_SECONDS)

    def pids(self) -> dict[str, int | None]:
        return {running.part.name: running.pid for running in self._parts}

    def _keep_all(self) -> None:
        while not self._leaving.wait(TICK_SECONDS):
            for running in list(self._parts):
                try:
                    self._tell(running, running.keep())
                except OSError as error:  # no log can be written, no process made: try again later
                    self._log.error("part_not_started", part=running.part.name, error=str(error))
                    self._leaving.wait(1.0)
        for running in reversed(self._parts):
            self._tell(running, running.stop())

    def _tell(self, running: Running, happened: str | None) -> None:
        if happened is not None:
            tell = self._log.info if happened == "started" else self._log.warning
            tell(happened, part=running.part.name, pid=running.pid)


def _logger(file: TextIO) -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(file),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "part", "event"]),
        ],
    )
