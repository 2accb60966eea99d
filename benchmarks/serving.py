"""A private stack that serves a model and versions of it, and clients that ask it.

The model is entered straight into the record: its probes, which only edits need, are not asked.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import torch

from factedit.checkpoint_store import CheckpointStore
from factedit.model_sources import import_source
from factedit.models import load_model
from factedit.relations import builtin_catalogue
from service import models
from service.database import Database
from service.ids import new_id
from service.settings import Settings
from service.tables import Version
from workers.operations import key_of_this_folder
from workers.stack.stack import stack

MODEL = "served"


@dataclass(frozen=True, slots=True)
class Served:
    """A running stack; the versions that it has beside the root, and the bytes of their overlays together."""

    settings: Settings
    key: str
    root: Path
    root_digest: str
    versions: list[str]
    overlay_bytes: int

    @property
    def url(self) -> str:
        return f"http://{self.settings.api_host}:{self.settings.api_port}"


@contextmanager
def served(folder: Path, source: str, *, versions: int = 0) -> Iterator[Served]:
    """A stack under `folder` with the model `source` and so many versions, each with a matrix of its own."""
    with stack(Settings(data_dir=folder, api_port=0)) as settings:
        store = CheckpointStore(settings.store_dir)
        model_folder = folder / "model"
        info = import_source(source, model_folder)
        digest = store.publish_root(model_folder)
        database = Database(settings.database_url, pool_size=1)
        try:
            with database.transaction() as s:
                model = models.create(
                    s,
                    name=MODEL,
                    source=source,
                    root_digest=digest,
                    task=info.task,
                    architecture=info.architecture,
                    dtype=info.dtype,
                    n_blocks=info.n_blocks,
                    n_parameters=info.n_parameters,
                    info={},
                    actor="benchmark",
                )
                overlays = _overlays(store, model_folder, versions)
                rows = [_version(model.id, model.root_version_id, *overlay) for overlay in overlays]
                s.add_all(rows)
                ids = [row.id for row in rows]
        finally:
            database.close()
        yield Served(
            settings,
            key_of_this_folder(settings),
            model_folder,
            digest,
            ids,
            sum(n_bytes for _, n_bytes in overlays),
        )


def _overlays(store: CheckpointStore, folder: Path, count: int) -> list[tuple[str, int]]:
    """The digests and bytes in memory of overlays that each move one matrix a little."""
    if not count:
        return []
    lm = load_model(folder, device="cpu")
    name = lm.block_tensors(lm.n_blocks // 2, "mlp_out")[0]
    matrix = lm.tensors[name].data
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        moved = matrix + 0.01 * matrix.std() * torch.randn(matrix.shape, generator=generator).to(matrix.dtype)
        found.append((store.publish_overlay({name: moved}).digest, moved.nbytes))
    return found


def _version(model_id: str, parent: str | None, digest: str, n_bytes: int) -> Version:
    return Version(
        id=new_id("ver"),
        model_id=model_id,
        parent_id=parent,
        overlay_digest=digest,
        overlay_bytes=n_bytes,
        state="superseded",
        manifest={},
        metrics={},
    )


def fresh_prompts(seed: int = 0) -> Iterator[str]:
    """The catalogue's facts in their training templates, no prompt twice, in a random order."""
    catalogue = builtin_catalogue()
    prompts = {
        prompt
        for fact in catalogue.facts
        for prompt in catalogue.relations[fact.relation].training_prompts(fact.subject)
    }
    chosen = sorted(prompts)
    random.Random(seed).shuffle(chosen)
    yield from chosen


@dataclass(slots=True)
class Asked:
    """What some clients saw: for each answer when it was asked for, when it came, whose it was."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return max(end for _, end, _ in self.answers) - min(start for start, _, _ in self.answers)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answers) / self.seconds

    def steady_rate(self, clients: int) -> float:
        """Answers a second while all were at it: after as many answers as clients, to the last question."""
        begin = sorted(end for _, end, _ in self.answers)[clients - 1]
        finish = max(start for start, _, _ in self.answers)
        return sum(begin < end <= finish for _, end, _ in self.answers) / (finish - begin)

    @property
    def latencies(self) -> list[float]:
        return [end - start for start, end, _ in self.answers]


def ask(
    url: str,
    prompts: Sequence[str],
    clients: int,
    max_tokens: int,
    *,
    key: str = "",
    models: Sequence[str] = (MODEL,),
    meanwhile: Callable[[httpx2.AsyncClient, Asked], Awaitable[None]] | None = None,
) -> Asked:
    """Each client asks the next prompt as soon as it has its answer, of the models in turn."""
    asked, left, turn = Asked(), iter(prompts), itertools.cycle(models)

    async def client(http: httpx2.AsyncClient) -> None:
        for prompt in left:
            body = {"model": next(turn), "prompt": prompt, "max_tokens": max_tokens}
            started = time.perf_counter()
            response = await http.post("/predict", json=body)
            ended = time.perf_counter()
            if response.status_code == 200:
                asked.answers.append((started, ended, response.json().get("model_version", "")))
            else:
                asked.failures.append(f"{response.status_code} {response.text[:200]}")

    async def run() -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=clients + 1)
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits) as http:
            others = [meanwhile(http, asked)] if meanwhile is not None else []
            await asyncio.gather(*(client(http) for _ in range(clients)), *others)

    asyncio.run(run())
    return asked
