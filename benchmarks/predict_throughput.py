"""How fast POST /predict is: `python -m benchmarks.predict_throughput --help`.

In one run on one machine, with one thread budget and no prompt asked twice: many clients of the service;
the bare model on the same prompts in batches of as many; FastAPI around a transformers pipeline; and one
client of the service beside the bare model, a prompt at a time. That one client asks between two runs of the
bare model, since the machine's own speed drifts by more than what the service adds; and it asks the same
prompts again, whose answers are kept: what then remains is the service alone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from benchmarks.cells import table
from benchmarks.serving import Asked, ask, fresh_prompts, served
from factedit.model_sources import DEFAULT_SOURCE
from workers.stack import threads
from workers.stack.redis import free_port


def bare(
    folder: Path, prompts: Sequence[str], batch: int, max_tokens: int, budget: int
) -> dict[str, list[float]]:
    """Seconds of each batch of the bare model, by `generate` and by factedit.decoding."""
    command = [sys.executable, "-m", "benchmarks.bare_model", str(folder), str(batch), str(max_tokens)]
    done = subprocess.run(
        command,
        input=json.dumps(list(prompts)),
        env=os.environ | threads.environment(budget),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def plain_server(folder: Path, budget: int) -> Iterator[str]:
    """The baseline's address, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.plain_server", str(folder), str(port)]
    process = subprocess.Popen(command, env=os.environ | threads.environment(budget))
    url = f"http://127.0.0.1:{port}"
    try:
        until_ready(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


def until_ready(url: str, process: "subprocess.Popen[bytes]", seconds: float = 60.0) -> None:
    """Raises RuntimeError when it ends, or does not answer in time."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"nothing answers at {url}")


def report(
    clients: int,
    many: Asked,
    bare_many: dict[str, list[float]],
    plain: Asked,
    one: Asked,
    bare_one: dict[str, list[float]],
    again: Asked,
) -> str:
    """Two Markdown tables."""
    rates = {f"bare model, {name}": len(many.answers) / sum(times) for name, times in bare_many.items()}
    rates["FastAPI and a pipeline"] = plain.rate
    ours = many.steady_rate(clients)
    rows = [
        ["the service", f"{ours:.1f}", "1"],
        *([name, f"{rate:.1f}", f"{ours / rate:.2f}"] for name, rate in rates.items()),
    ]
    own = statistics.median(one.latencies)
    alone = {name: statistics.median(times) for name, times in bare_one.items()}
    latencies = [
        ["the service", f"{own * 1000:.1f}", ""],
        *(
            [f"bare model, {name}", f"{median * 1000:.1f}", f"{(own - median) * 1000:.1f}"]
            for name, median in alone.items()
        ),
        ["the service, the same again", f"{statistics.median(again.latencies) * 1000:.1f}", ""],
    ]
    return "\n".join(
        [
            table([f"{clients} clients", "answers/s", "the service is so many times as fast"], rows),
            table(["one client", "median ms", "the service adds, ms"], latencies),
        ]
    )


def main(
    source: Annotated[str, typer.Option(help="The model, as `model add` takes it.")] = DEFAULT_SOURCE,
    clients: Annotated[int, typer.Option(help="How many ask at once.")] = 64,
    max_tokens: Annotated[int, typer.Option(help="Of each answer.")] = 16,
    batches: Annotated[int, typer.Option(help="How many answers each client gets.")] = 6,
    plain_answers: Annotated[int, typer.Option(help="Answers of the baseline; it is slow.")] = 16,
    one_client: Annotated[int, typer.Option(help="Answers at concurrency 1.")] = 16,
) -> None:
    """Measure the throughput and latency of /predict against the bare model and a plain server."""
    prompts = fresh_prompts()

    def next_prompts(count: int) -> list[str]:
        return list(islice(prompts, count))

    with tempfile.TemporaryDirectory() as folder, served(Path(folder), source) as it:
        budget = it.settings.predictor_threads
        ask(it.url, next_prompts(2 * clients), clients, max_tokens, key=it.key)  # warm
        asked = next_prompts(batches * clients)
        many = ask(it.url, asked, clients, max_tokens, key=it.key)
        asked_alone = next_prompts(one_client)
        before = bare(it.root, asked_alone, 1, max_tokens, budget)
        one = ask(it.url, asked_alone, 1, max_tokens, key=it.key)
        after = bare(it.root, asked_alone, 1, max_tokens, budget)
        bare_one = {name: times + after[name] for name, times in before.items()}
        again = ask(it.url, asked_alone, 1, max_tokens, key=it.key)
        bare_many = bare(it.root, asked, clients, max_tokens, budget)
        with plain_server(it.root, budget) as url:
            plain = ask(url, next_prompts(plain_answers), clients, max_tokens)
        batch = it.settings.predictor_batch
    if failures := [*many.failures, *one.failures, *again.failures, *plain.failures]:
        typer.echo(f"{len(failures)} failed: {failures[0]}", err=True)
        raise typer.Exit(1)
    typer.echo(report(clients, many, bare_many, plain, one, bare_one, again))
    typer.echo(
        f"{clients} clients, {max_tokens} tokens an answer at most, {budget} threads, batches of up to "
        f"{batch}, {threads.cores()} cores; no prompt was asked twice."
    )


if __name__ == "__main__":
    typer.run(main)
