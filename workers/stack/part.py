"""One part of the stack: what to run, and the process that runs it now."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")
LOG_BYTES = 8 << 20
QUIET_SECONDS = 60.0  # A part that ran this long may fail again without a longer wait.
FIRST_WAIT, LONGEST_WAIT = 0.25, 15.0
SETTLED_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Part:
    """What to run, when it counts as ready, and how it is ended."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[], bool] | None = None  # None: once it has lived a while
    before_start: Callable[[], object] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL  # what the kernel sends it when the stack dies
    stop_seconds: float = 10.0
    ready_seconds: float = 60.0


class Running:
    """The process that runs a part now. All methods but `ready` are for the supervisor's thread."""

    def __init__(self, part: Part, log: Path, environment: Mapping[str, str]) -> None:
        self.part = part
        self.log = log
        self.deaths = 0
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._wait = FIRST_WAIT
        self._due = 0.0

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def ready(self) -> bool:
        """Whether it runs and answers. For any thread."""
        if self._process is None:
            return False
        if self.part.ready is None:
            return time.monotonic() - self._started > SETTLED_SECONDS
        return self.part.ready()

    def keep(self) -> str | None:
        """Start the part if it does not run and is due; in words, what happened, if anything."""
        now = time.monotonic()
        if self._process is None:
            if now < self._due:
                return None
            self._start()
            return "started"
        code = self._process.poll()
        if code is None:
            return None
        # Whatever it had started is of no use without it, and might hold what a new one needs.
        self._signal_group(signal.SIGKILL)
        self._process = None
        self.deaths += 1
        quiet = now - self._started > QUIET_SECONDS
        self._wait = FIRST_WAIT if quiet or self.deaths == 1 else min(self._wait * 2, LONGEST_WAIT)
        self._due = now + self._wait
        return f"ended with {_exit(code)}; it starts again in {self._wait:g} s"

    def stop(self) -> str | None:
        """Ask it to end, make it end, and end what it started. In words, if it had to be made to."""
        if self._process is None:
            return None
        forced = None
        self._process.send_signal(self.part.stop_signal)
        try:
            self._process.wait(self.part.stop_seconds)
        except subprocess.TimeoutExpired:
            forced = f"did not end within {self.part.stop_seconds:g} s and was killed"
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        self._process = None
        return forced

    def tail(self, lines: int = 15) -> str:
        """The end of its log, for a message."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 8192))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _start(self) -> None:
        part = self.part
        if part.before_start is not None:
            part.before_start()
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        launch = [sys.executable, "-I", "-S", str(LAUNCH), str(int(part.death_signal)), str(os.getpid())]
        launch += [part.user] if part.user else []
        self._started = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launch, "--", *part.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._environment, **part.environment},
                start_new_session=True,  # Ctrl-C is for the stack, which ends its parts in order.
            )

    def _signal_group(self, which: signal.Signals) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, which)
        except (ProcessLookupError, PermissionError):  # all of it gone; or only zombies left (macOS)
            return


def _exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
