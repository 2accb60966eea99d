"""The child of a worker: does the computing, one order at a time, and keeps the model warm between them.

`python -m workers.child SOCKET PARENT WORKS`: talks in JSON lines over the socket it inherits, and
ends with its parent. It may be killed at any moment: what it makes appears in the store whole or
not at all, and only its worker writes to the database.

    in:   {"work": name, "order": {…}}
    out:  {"said": "phase", "phase": …}             {"said": "progress", "progress": {…}}
          {"said": "done", "result": {…}, "seconds": {phase: …}}
          {"said": "failed", "code": …, "message": …, "digest": …}   the order can't be carried out
          {"said": "broke", "reason": …}                             and the process ends
"""

import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from workers.stack.launch import die_with_parent
from workers.stack.threads import NICENESS
from workers.work import Json, Tell, Work, WorkFailed, storable

BROKE = 70


class Child:
    """Reads orders and carries them out until its parent is gone."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._orders: queue.SimpleQueue[Json] = queue.SimpleQueue()
        # A thread reads, so that the parent's end is noticed amid the work.
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def serve(self, works: Mapping[str, Work]) -> NoReturn:
        while True:
            order = self._orders.get()
            tell = Tell(self._say)
            try:
                result = works[order["work"]](order["order"], tell)
                self._say({"said": "done", "result": result, "seconds": tell.seconds()})
            except WorkFailed as failed:
                why = {"code": failed.code, "message": failed.message, "digest": failed.digest}
                self._say({"said": "failed", **why})

    def broke(self, error: BaseException) -> None:
        """Only the kind of error is told on: its text may hold a path, or a user's words."""
        with suppress(OSError):
            self._say({"said": "broke", "reason": f"{type(error).__name__} in the work."})

    def _read(self) -> None:
        try:
            with self._channel.makefile("rb") as lines:
                for line in lines:
                    self._orders.put(json.loads(line))
        finally:
            os._exit(0)

    def _say(self, message: Json) -> None:
        self._channel.sendall(json.dumps(storable(message)).encode() + b"\n")


def main(descriptor: int, parent: int, module: str) -> NoReturn:
    die_with_parent(signal.SIGKILL, parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us in order
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    _first_to_go_when_memory_runs_out()
    os.nice(NICENESS)
    os.set_inheritable(descriptor, False)
    child = Child(socket.socket(fileno=descriptor))
    code = BROKE
    try:
        child.serve(importlib.import_module(module).works())
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else BROKE
    except BaseException as error:
        traceback.print_exc()
        child.broke(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: the interpreter's own end would wait for the libraries' threads.
        os._exit(code)


def _first_to_go_when_memory_runs_out() -> None:
    with suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text("500")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
