"""Many clients at once, each with a connection of its own: `python -m tests.support.crowd`.

Reads from its standard input what to ask whom, and writes to its standard output what each was answered,
in any order: {"question": …, "status": …, "headers": {…}, "body": …, "seconds": …}; where no answer came,
{"question": …, "broke": …, "seconds": …}.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SPARE_FILES = 100


@dataclass(frozen=True)
class Asking:
    """Client number n asks the n-th of the questions, round and round, and those after it: `each` in all."""

    host: str
    port: int
    key: str
    clients: int
    each: int
    questions: Sequence[dict[str, Any]]
    seconds: float
    """How long one waits for an answer."""


def crowd(asking: Asking) -> list[dict[str, Any]]:
    """What all of them were answered."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.crowd"],
        input=json.dumps(asdict(asking)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=asking.each * asking.seconds + 60,
    )
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


async def _all(asking: Asking) -> list[dict[str, Any]]:
    begin = asyncio.Event()
    clients = [asyncio.create_task(_client(asking, number, begin)) for number in range(asking.clients)]
    await asyncio.sleep(0)
    begin.set()
    return [answer for answers in await asyncio.gather(*clients) for answer in answers]


async def _client(asking: Asking, number: int, begin: asyncio.Event) -> list[dict[str, Any]]:
    await begin.wait()
    heard: list[dict[str, Any]] = []
    writer = None
    for step in range(asking.each):
        question = (number + step) % len(asking.questions)
        began = time.monotonic()
        try:
            async with asyncio.timeout(asking.seconds):
                if writer is None:
                    reader, writer = await asyncio.open_connection(asking.host, asking.port)
                answer = await _answer(asking, asking.questions[question], reader, writer)
        except (OSError, asyncio.IncompleteReadError) as error:  # a time-out is an OSError
            answer = {"broke": type(error).__name__}
            writer = None
        heard.append({"question": question, "seconds": time.monotonic() - began, **answer})
    if writer is not None:
        writer.close()
    return heard


async def _answer(
    asking: Asking, question: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> dict[str, Any]:
    body = json.dumps(question).encode()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {asking.host}\r\nAuthorization: Bearer {asking.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    raw = await reader.readexactly(int(headers["content-length"]))
    return {"status": int(first.split()[1]), "headers": headers, "body": json.loads(raw)}


def main() -> None:
    asking = Asking(**json.load(sys.stdin))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, asking.clients + SPARE_FILES), most))
    json.dump(asyncio.run(_all(asking)), sys.stdout)


if __name__ == "__main__":
    main()
