"""What many versions cost: `python -m benchmarks.many_versions --help`.

Memory of a predictor that has answered with many versions, against one that has answered with the root;
what it costs to ask another version than the last time; how soon after a rollback, under load, the new
version answers; and how soon the predictor and the API answer after they are started.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import httpx2
import psutil
import typer

from benchmarks.cells import table
from benchmarks.predict_throughput import until_ready
from benchmarks.serving import MODEL, Asked, Served, ask, fresh_prompts, served
from factedit.model_sources import DEFAULT_SOURCE
from workers.stack import threads
from workers.stack.redis import free_port
from workers.stack.stack import environment

STARTS = 3
"""How often each part is started; the fastest counts: the disk is warm by then."""
SETTLE = 1.0
"""Seconds under load before the rollback, and after it."""


@dataclass(slots=True)
class Rollback:
    """Under load: when the call returned, and what the clients saw."""

    to: str
    called: float = 0.0
    returned: float = 0.0
    asked: Asked = field(default_factory=Asked)

    @property
    def first_answer(self) -> float:
        """Seconds from the call's return to the new version's first answer; below 0 if that came before."""
        return min(end for _, end, version in self.asked.answers if version == self.to) - self.returned

    @property
    def first_asked_after(self) -> float:
        """Seconds that the first question asked after the return took."""
        start, end, _ = min(answer for answer in self.asked.answers if answer[0] >= self.returned)
        return end - start

    @property
    def usual(self) -> float:
        """The median answer's seconds before the call."""
        return statistics.median(end - start for start, end, _ in self.asked.answers if end < self.called)

    @property
    def slowest(self) -> float:
        """The slowest answer's seconds, of those that were on their way at the call or came after it."""
        return max(end - start for start, end, _ in self.asked.answers if end >= self.called)


def predictor_memory(it: Served) -> int:
    """Resident bytes of the process that listens on the predictor's port."""
    port = it.settings.predictor_port
    found = (c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port)
    return int(psutil.Process(next(found)).memory_info().rss)


def rolled_back(it: Served, prompts: list[str], clients: int, max_tokens: int) -> Rollback:
    """Move production from the root to the first version while clients ask production."""
    rollback = Rollback(it.versions[0])

    async def act(http: httpx2.AsyncClient, asked: Asked) -> None:
        await asyncio.sleep(SETTLE)
        rollback.called = time.perf_counter()
        response = await http.post(
            f"/models/{MODEL}/rollback", json={"to": rollback.to, "reason": "measured"}
        )
        rollback.returned = time.perf_counter()
        response.raise_for_status()

    rollback.asked = ask(it.url, prompts, clients, max_tokens, key=it.key, meanwhile=act)
    return rollback


def seconds_to_start(name: str, environ: Mapping[str, str], url: str) -> float:
    """From the start of a part's process to the first 200 of its /readyz; the fastest of some starts."""
    times = []
    for _ in range(STARTS):
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", name], env=dict(environ), stderr=subprocess.DEVNULL
        )
        try:
            until_ready(url, process)
            times.append(time.perf_counter() - started)
        finally:
            process.kill()
            process.wait()
    return min(times)


def start_times(it: Served) -> dict[str, float]:
    """Seconds by part, each beside the stack that runs."""
    ports = {"predictor": free_port(), "api": free_port()}
    settings = it.settings.model_copy(update={"predictor_port": ports["predictor"], "api_port": ports["api"]})
    budget = threads.environment(settings.predictor_threads)
    return {
        name: seconds_to_start(name, environment(settings) | budget, f"http://127.0.0.1:{port}")
        for name, port in ports.items()
    }


def main(
    source: Annotated[str, typer.Option(help="The model, as `model add` takes it.")] = DEFAULT_SOURCE,
    count: Annotated[int, typer.Option(help="How many versions.")] = 50,
    clients: Annotated[int, typer.Option(help="How many ask during the rollback.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Of each answer.")] = 1,
    asked: Annotated[int, typer.Option(help="Answers for the cost of switching.")] = 40,
) -> None:
    """Measure memory, switching, rollback and start times."""
    prompts = fresh_prompts()

    def next_prompts(number: int) -> list[str]:
        return list(islice(prompts, number))

    with tempfile.TemporaryDirectory() as folder, served(Path(folder), source, versions=count) as it:
        names = [f"{MODEL}@{version}" for version in it.versions]
        root = [f"{MODEL}@root"]
        warm = ask(it.url, next_prompts(4), 1, max_tokens, key=it.key, models=root)
        one = predictor_memory(it)
        each = ask(it.url, next_prompts(2 * count), 4, max_tokens, key=it.key, models=names)
        many = predictor_memory(it)
        same = ask(it.url, next_prompts(asked), 1, max_tokens, key=it.key, models=names[:1])
        switching = ask(it.url, next_prompts(asked), 1, max_tokens, key=it.key, models=names[:2])
        rollback = rolled_back(it, next_prompts(60 * clients), clients, max_tokens)
        starts = start_times(it)
        overlays = it.overlay_bytes
    failures = [f for part in (warm, each, same, switching, rollback.asked) for f in part.failures]
    medians = [statistics.median(part.latencies) * 1000 for part in (same, switching)]
    rows = [
        ["memory of one, MB", f"{one / 1e6:.0f}"],
        [f"memory of {count}, MB", f"{many / 1e6:.0f}"],
        ["their overlays, MB", f"{overlays / 1e6:.0f}"],
        [f"({count} less the overlays) / one", f"{(many - overlays) / one:.2f}"],
        ["median answer, the same version each time, ms", f"{medians[0]:.1f}"],
        ["median answer, another version each time, ms", f"{medians[1]:.1f}"],
        ["switching costs, ms", f"{medians[1] - medians[0]:.1f}"],
        [f"median answer before the rollback, {clients} clients, ms", f"{rollback.usual * 1000:.0f}"],
        ["the rollback's call, ms", f"{(rollback.returned - rollback.called) * 1000:.0f}"],
        [
            "first answer of the new version after the call's return, ms",
            f"{rollback.first_answer * 1000:.0f}",
        ],
        ["first question after the call's return took, ms", f"{rollback.first_asked_after * 1000:.0f}"],
        [
            "that is more than the median before, ms",
            f"{(rollback.first_asked_after - rollback.usual) * 1000:.0f}",
        ],
        ["slowest answer during or after it, ms", f"{rollback.slowest * 1000:.0f}"],
        ["failed", str(len(failures))],
        *([f"{name}: ready after, s", f"{seconds:.2f}"] for name, seconds in starts.items()),
    ]
    typer.echo(table(["what", "measured"], rows))
    typer.echo(f"{max_tokens} tokens an answer, {threads.cores()} cores, {os.uname().machine}.")
    if failures:
        typer.echo(failures[0], err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
