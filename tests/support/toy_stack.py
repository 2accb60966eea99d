"""The real stack over a toy model: jobs that last long enough to be disturbed, parts to be killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import psutil
from sqlalchemy import select

from factedit.toy import write_toy_model
from service import events, jobs
from service.database import Database
from service.settings import Settings
from service.tables import JobEvent, Version
from workers.demo.client import Api, Problem
from workers.operations import key_of_this_folder
from workers.registration import register
from workers.stack.part import Part, Running
from workers.stack.stack import stack

MODEL = "toy"
ROOT = f"{MODEL}@root"
Json = dict[str, Any]

LENIENT = {"min_efficacy": 0.0, "margin": 0.99, "alpha": 0.001, "probes": 30}
"""A gate that a toy passes."""

ADAM = {"name": "constrained_ftm", "anchors": {"count": 0}}
SLOW: Json = {
    "edits": [{"subject": "Austria", "relation": "capital", "new_object": "Rome"}],
    "method": {**ADAM, "max_steps": 250, "learning_rate": 1e-6},
}
"""Steps too small to get anywhere, so all of them are taken: some seconds of editing, the same each time."""

QUICK_METHOD: Json = {
    "method": {**ADAM, "max_steps": 100, "learning_rate": 5e-3},
    "constraint": {"norm": "l_inf", "radius": 0.1},
}
"""Reaches its aim in a few steps."""


def capital(country: str) -> str:
    return f"The capital of {country} is the city of"


def quick(country: str, city: str) -> Json:
    """A batch of one edit that is made in an instant."""
    return {"edits": [{"subject": country, "relation": "capital", "new_object": city}], **QUICK_METHOD}


class Parts:
    """The stack's parts by name, as its supervisor keeps them; those in `held` are not started again."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.running: dict[str, Running] = {}

    def make(self, part: Part, log: Path, environment: Mapping[str, str]) -> Running:
        self.running[part.name] = _Held(part, log, environment, self.held)
        return self.running[part.name]


class _Held(Running):
    """Stays dead for as long as somebody holds it down."""

    def __init__(self, part: Part, log: Path, environment: Mapping[str, str], held: set[str]) -> None:
        super().__init__(part, log, environment)
        self._held = held

    def keep(self) -> str | None:
        return None if self.pid is None and self.part.name in self._held else super().keep()


@dataclass(frozen=True)
class ToyStack:
    """A running stack in which the toy model is registered."""

    settings: Settings
    api: Api
    key: str
    database: Database
    parts: Parts

    # Jobs

    def post(self, batch: Json, **fields: Any) -> str:
        """The id of the new job, which builds on the root."""
        job = self.api.post("/edits", self.body(batch, **fields))
        return str(job["id"])

    def body(self, batch: Json, **fields: Any) -> Json:
        return {"model": MODEL, "base_version": "root", "gate": LENIENT, **batch, **fields}

    def post_slow(self) -> str:
        """The id of a job that is being edited now, and will be for some seconds."""
        job_id = self.post(SLOW)
        eventually(lambda: self.job(job_id)["progress"].get("phase") == "editing", 30)
        return job_id

    def made(self, batch: Json, **fields: Any) -> Json:
        """The version that a batch was made into."""
        job = self.ended(self.post(batch, **fields))
        assert job["status"] == "succeeded", job["error"]
        return self.version(job["candidate_version"])

    def job(self, job_id: str) -> Json:
        return self.api.get(f"/jobs/{job_id}")

    def ended(self, job_id: str, seconds: float = 90.0) -> Json:
        """The job once it has ended; whoever polls asks again when the line is cut."""
        end = time.monotonic() + seconds
        job: Json = {}
        while time.monotonic() < end:
            try:
                job = self.api.get(f"/jobs/{job_id}", headers={"Prefer": "wait=5"})
            except httpx2.TransportError:
                time.sleep(0.2)
            if job.get("status") in jobs.FINAL:
                return job
        raise AssertionError(f"{job_id} has no end: {job}")

    def events(self, job_id: str) -> list[JobEvent]:
        with self.database.transaction() as s:
            return events.after(s, job_id, limit=10_000)

    def types(self, job_id: str) -> list[str]:
        return [event.type for event in self.events(job_id)]

    def worker_of(self, job_id: str) -> str:
        """The worker that holds the job now; nothing if none does."""
        with self.database.transaction() as s:
            return jobs.get(s, job_id).worker or ""

    def versions_of(self, job_id: str) -> list[Version]:
        with self.database.transaction() as s:
            return list(s.scalars(select(Version).where(Version.job_id == job_id)))

    # Versions

    def version(self, version_id: str) -> Json:
        return self.api.get(f"/models/{MODEL}/versions/{version_id}")

    def production(self) -> str:
        return str(self.api.get(f"/models/{MODEL}")["production_version"])

    def roll_back(self, to: str) -> Json:
        return self.api.post(f"/models/{MODEL}/rollback", {"to": to, "reason": "A test."})

    def start_at_root(self) -> None:
        root = self.api.get(f"/models/{MODEL}")["root_version"]
        if self.production() != root:
            self.roll_back(root)

    def answer(self, reference: str, country: str) -> str:
        return self.api.answers(reference, [capital(country)])[0].strip()

    # Processes

    def process(self, name: str) -> psutil.Process | None:
        """The process that now runs a part; `child` is the worker's."""
        running = self.parts.running["worker" if name == "child" else name]
        try:
            process = psutil.Process(running.pid) if running.pid is not None else None
            if process is None or name != "child":
                return process
            return next((c for c in process.children() if "workers.child" in c.cmdline()), None)
        except psutil.Error:  # gone in this very moment
            return None

    def kill(self, name: str) -> int:
        """By SIGKILL; the id of the process that is no more."""
        process = self.process(name)
        assert process is not None, f"there is no {name} to kill"
        pid = int(process.pid)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(pid), 10)
        return pid

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """Kill parts, and keep them dead for as long as the block lasts."""
        self.parts.held.update(names)
        try:
            for name in names:
                self.kill(name)
            yield
            assert all(self.process(name) is None for name in names)
        finally:
            self.parts.held.difference_update(names)

    def whole(self) -> bool:
        """Whether every part runs and the API finds them all well."""
        try:
            ready = self.api.get("/readyz")
        except (httpx2.TransportError, Problem):
            return False
        well = all(ready[part] == "ok" for part in ("database", "redis", "predictor"))
        return well and self.process("worker") is not None


@contextmanager
def toy_stack(folder: Path) -> Iterator[ToyStack]:
    """A stack of its own under `folder`, with the toy model trained and registered."""
    write_toy_model(folder / "toy")
    parts = Parts()
    with stack_of(parts, Settings(data_dir=folder / "data", api_port=0)) as settings:
        database = Database(settings.database_url, pool_size=1)
        key = key_of_this_folder(settings)
        try:
            register(database, settings, MODEL, f"folder:{folder / 'toy'}")
            with Api(f"http://{settings.api_host}:{settings.api_port}", key) as api:
                yield ToyStack(settings, api, key, database, parts)
        finally:
            database.close()


@contextmanager
def stack_of(parts: Parts, settings: Settings) -> Iterator[Settings]:
    started = stack(settings)
    with mock.patch("workers.stack.supervisor.Running", parts.make):
        used = started.__enter__()
    try:
        yield used
    finally:
        started.__exit__(None, None, None)


def eventually(holds: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"it did not come to pass within {seconds:g} s"
        time.sleep(0.05)
