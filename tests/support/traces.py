"""The system calls of running processes, in the order in which they happened, by strace."""

import re
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.tools import tool
from tests.support.toy_stack import eventually

CALLS = "fsync,fdatasync,rename,renameat,renameat2,write,pwrite64,writev,sendto,sendmsg"
_TEXT_BYTES = "4000"
_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += +\d")


@dataclass(frozen=True)
class Call:
    """A system call that succeeded; `began` and `ended` are lines of the trace."""

    name: str
    arguments: str
    began: int
    ended: int

    @property
    def path(self) -> str:
        """Of the file that its first argument stands for."""
        return self.arguments.partition("<")[2].partition(">")[0]


@contextmanager
def traced(pids: Iterable[int], file: Path) -> Iterator[None]:
    """Write to `file` what the processes do, in all their threads, while the block lasts."""
    strace = tool("strace", "strace")
    attach = [argument for pid in pids for argument in ("-p", str(pid))]
    command = [strace, "-f", "-y", "-s", _TEXT_BYTES, "-e", f"trace={CALLS}", "-o", str(file), *attach]
    told = file.with_suffix(".told")
    with told.open("wb") as output:
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=output)
    try:
        eventually(
            lambda: tracer.poll() is not None or told.read_text().count("attached") >= len(attach) // 2, 30
        )
        if tracer.poll() is not None:
            pytest.skip(f"one may not trace a process here: {told.read_text().strip()}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go of them
        tracer.wait(30)


def calls(file: Path) -> list[Call]:
    """In the order in which they ended."""
    found, begun = [], dict[str, tuple[int, str]]()
    for number, line in enumerate(file.read_text(errors="replace").splitlines()):
        matched = _LINE.fullmatch(line)
        if matched is None:
            continue
        pid, rest = matched["pid"], matched["rest"]
        began = number
        if rest.endswith(_UNFINISHED):
            begun[pid] = number, rest.removesuffix(_UNFINISHED)
            continue
        if resumed := _RESUMED.match(rest):
            began, before = begun.pop(pid, (number, ""))
            rest = before + rest[resumed.end() :]
        if call := _CALL.match(rest):
            found.append(Call(call["name"], call["arguments"], began, number))
    return found
