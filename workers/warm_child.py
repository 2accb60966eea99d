"""The worker's end of its child: start it, give it an order, hear from it, end it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from pydantic import BaseModel

from workers.work import Json

REPERTOIRE = "workers.repertoire"
GRACE_SECONDS = 2.0
SEND_SECONDS = 30.0


class ChildDied(Exception):
    """The child's process ended, by itself or not; the text says how, for a user."""


class WarmChild:
    """One process at most, kept between orders and replaced after any fault.

    For the thread that lives as long as the worker: on Linux the kernel ends a child when the
    *thread* that started it ends.
    """

    def __init__(self, environment: Mapping[str, str], works: str = REPERTOIRE) -> None:
        self._environment, self._works = dict(environment), works
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._heard = bytearray()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Have a child, one that lives. It loads its libraries while nobody waits for them."""
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        self._channel, theirs = socket.socketpair()
        with theirs:
            numbers = (str(theirs.fileno()), str(os.getpid()))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.child", *numbers, self._works],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self._environment,
            )

    def give(self, work: str, order: BaseModel) -> None:
        """Raises ChildDied."""
        self.start()
        assert self._channel is not None
        line = json.dumps({"work": work, "order": order.model_dump(mode="json")}).encode() + b"\n"
        self._channel.settimeout(SEND_SECONDS)
        try:
            self._channel.sendall(line)
        except OSError as error:
            raise ChildDied(self._how_it_ended()) from error

    def hear(self, seconds: float) -> Json | None:
        """What the child says next; None if it says nothing for so long. Raises ChildDied."""
        assert self._channel is not None
        while (end := self._heard.find(b"\n")) < 0:
            self._channel.settimeout(max(seconds, 0.001))
            try:
                read = self._channel.recv(1 << 18)
            except TimeoutError:
                return None
            except OSError:
                read = b""
            if not read:
                raise ChildDied(self._how_it_ended())
            self._heard += read
        line = bytes(self._heard[:end])
        del self._heard[: end + 1]
        message: Json = json.loads(line)
        if message["said"] == "broke":
            self.end()
            raise ChildDied(message["reason"])
        return message

    def end(self, grace: float = 0.0) -> None:
        """End the child, if there is one; with grace, let it first remove what it was writing."""
        if self._process is not None:
            if grace > 0:
                self._process.terminate()
                self._wait(grace)
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._heard.clear()

    def _wait(self, seconds: float) -> int | None:
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _how_it_ended(self) -> str:
        assert self._process is not None
        code = self._wait(GRACE_SECONDS)
        self.end()
        if code is None:
            return "The working process no longer answered."
        if code == -signal.SIGKILL:
            return "The working process was killed, as happens when memory runs out."
        if code < 0:
            return f"The working process was ended by {signal.Signals(-code).name}."
        return f"The working process ended with exit code {code}."
