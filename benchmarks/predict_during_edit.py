"""How much slower POST /predict is while an edit runs: `python -m benchmarks.predict_during_edit --help`.

Asks a running stack one prompt at a time, first idle, then during one edit job (promotion `manual`, so
that production stays where it is), and compares the percentiles. Fails if the ratio is over the limit.
"""

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import cycle
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console
from rich.table import Table

from workers.demo.client import FINAL, Api, Problem

DEMO = json.loads((resources.files("workers.demo") / "edits.json").read_text(encoding="utf-8"))
WARM_UP = 10
POLL_SECONDS = 0.2
IDLE = "idle"


@dataclass
class Samples:
    """Latencies in seconds by what the stack was doing when the prompt was sent, and failures."""

    latencies: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    def during(self, *, job: bool) -> list[float]:
        return [
            seconds for phase, each in self.latencies.items() if (phase != IDLE) == job for seconds in each
        ]


class JobWatch:
    """Polls a job in a thread of its own; `phase` is its phase, None before it runs and at its end."""

    def __init__(self, api: Api, job: str) -> None:
        self._api, self._job = api, job
        self.phase: str | None = None
        self.seen: dict[str, Any] = {}
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        try:
            while (job := self._api.get(f"/jobs/{self._job}"))["status"] not in FINAL:
                self.seen = job
                self.phase = (job.get("phase") or "loading") if job["status"] == "running" else None
                time.sleep(POLL_SECONDS)
            self.seen = job
        finally:
            self.phase = None
            self.ended.set()


def percentile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the closest ranks."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def ask_until(
    api: Api, body: dict[str, Any], pause: float, phase: Callable[[], str | None], done: Callable[[], bool]
) -> Samples:
    """Ask prompt after prompt until `done`; what is asked while `phase()` is None does not count."""
    samples = Samples()
    for prompt in _prompts():
        if done():
            break
        at = phase()
        started = time.perf_counter()
        try:
            api.post("/predict", body | {"prompt": prompt})
        except (Problem, httpx2.TransportError):
            if at is not None:
                samples.failures[at] = samples.failures.get(at, 0) + 1
        else:
            if at is not None:
                samples.latencies.setdefault(at, []).append(time.perf_counter() - started)
        time.sleep(pause)
    return samples


def _prompts() -> Iterator[str]:
    yield from cycle(DEMO["bystanders"])


def show(console: Console, samples: Samples) -> None:
    table = Table(
        "while", "answers", "p50 ms", "p95 ms", "max ms", "failed", title="POST /predict, one prompt"
    )
    rows = {**samples.latencies, "the whole job": samples.during(job=True)}
    for name, latencies in rows.items():
        figures = [
            percentile(latencies, 0.5),
            percentile(latencies, 0.95),
            max(latencies, default=float("nan")),
        ]
        failed = sum(samples.failures.values()) if name == "the whole job" else samples.failures.get(name, 0)
        table.add_row(name, str(len(latencies)), *(f"{figure * 1000:.0f}" for figure in figures), str(failed))
    console.print(table)


def run(
    key: Annotated[str, typer.Option(envvar="FACTEDIT_API_KEY", help="A key with scopes predict and edit.")],
    model: Annotated[str, typer.Option(help="A registered model.")] = "smollm2",
    url: Annotated[str, typer.Option(envvar="FACTEDIT_URL")] = "http://127.0.0.1:8000",
    idle_seconds: Annotated[float, typer.Option(help="How long to measure the idle stack.")] = 20.0,
    pause: Annotated[float, typer.Option(help="Seconds between an answer and the next prompt.")] = 0.1,
    max_tokens: Annotated[int, typer.Option(help="Of each answer.")] = 8,
    at_most: Annotated[
        float, typer.Option(help="Fail when p95 during the job is more times the idle.")
    ] = 3.0,
) -> None:
    """Measure p50 and p95 of POST /predict idle and during an edit job, and their ratio."""
    console = Console()
    body = {"model": model, "max_tokens": max_tokens}
    with Api(url, key) as api, Api(url, key) as poller:
        for prompt in DEMO["bystanders"][:WARM_UP]:
            api.post("/predict", body | {"prompt": prompt})
        end = time.monotonic() + idle_seconds
        samples = ask_until(api, body, pause, lambda: IDLE, lambda: time.monotonic() > end)

        job = api.post("/edits", {"model": model, "edits": DEMO["edits"], "promotion": "manual"})["id"]
        watch = JobWatch(poller, job)
        busy = ask_until(api, body, pause, lambda: watch.phase, watch.ended.is_set)

    samples.latencies |= busy.latencies
    samples.failures |= busy.failures
    show(console, samples)
    console.print(f"job {job}: {watch.seen.get('status')} {watch.seen.get('error') or ''}")
    if not samples.during(job=True) or not samples.during(job=False):
        console.print("Nothing was answered while the job ran, or before it.")
        raise typer.Exit(1)
    ratios = [
        percentile(samples.during(job=True), share) / percentile(samples.during(job=False), share)
        for share in (0.5, 0.95)
    ]
    console.print(f"during the job / idle: p50 {ratios[0]:.2f}, p95 {ratios[1]:.2f} (at most {at_most:g})")
    failed = sum(samples.failures.values())
    if ratios[1] > at_most or failed > 0:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(run)
