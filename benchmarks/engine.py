"""The model under test: its root's answers, kept on disk, and edits made as the worker makes them."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.cells import Cells, Json, code_digest, digest_of
from factedit.anchors import draw
from factedit.block_trials import anchors_wanted
from factedit.checkpoint_store import CheckpointStore
from factedit.curvature import Covariance
from factedit.editing import edit
from factedit.facts import Edit
from factedit.generation import Generation, asked_again
from factedit.model_sources import DEFAULT_SOURCE, import_source
from factedit.models import LanguageModel, load_model
from factedit.overlay import root_digest
from factedit.relations import Relation, builtin_catalogue
from factedit.running_text import RunningText
from factedit.specs import Blocks, ConstraintSpec, MethodSpec
from factedit.task import Edited, plan
from workers.background import Background, apart_from

STORE = Path(".factedit/store")
BENCH = Path(".factedit/bench")

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Choices:
    """How to edit."""

    method: MethodSpec
    blocks: Blocks = "auto"
    constraint: ConstraintSpec = field(default_factory=ConstraintSpec)
    seed: int = 0

    @classmethod
    def of(cls, method: str, asked: Mapping[str, Any], seed: int = 0) -> "Choices":
        """A method with what was asked of it: blocks, a field of its constraint, or one of its own.

        Raises:
            ValueError: no such choice (pydantic's ValidationError is one).
        """
        blocks = TypeAdapter[Blocks](Blocks).validate_python(asked.get("blocks", "auto"))
        ball = {key: value for key, value in asked.items() if key in ConstraintSpec.model_fields}
        own = {key: value for key, value in asked.items() if key not in ball and key != "blocks"}
        return cls(MethodSpec.model_validate({"name": method, **own}), blocks, ConstraintSpec(**ball), seed)

    def resolved(self, lm: LanguageModel) -> Json:
        """The choices with the method's defaults filled in: a default that changes makes another cell."""
        chosen = plan(lm, self.method, self.blocks, self.constraint)
        return {
            "method": self.method.model_dump(),
            "blocks": chosen.blocks,
            "parameters": chosen.parameters,
            "norm": chosen.norm,
            "radius": chosen.radius,
            "anchors": chosen.anchors.model_dump(),
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Made:
    """An edit that was made: `seconds` of editing alone, `background_seconds` of measuring for it."""

    edited: Edited
    seconds: float
    background_seconds: float


class Engine:
    """A root, its cells, and its store of covariances, under the bench's folder."""

    def __init__(self, model: Path | None, bench: Path = BENCH, device: str = "auto") -> None:
        disable_progress_bar()  # of transformers
        code_digest()  # Of the code that was loaded just now, whatever becomes of the files meanwhile.
        folder = model or default_model(bench)
        self.lm = load_model(folder, device=device)
        self.folder = home(folder, bench)
        self.cells = Cells(self.folder / "cells")
        self.store = CheckpointStore(self.folder / "store")
        self._roots = Cells(self.folder / "root")
        self._digest = root_digest(self.lm)
        self._background = Background()

    def _texts(self) -> list[str]:
        return self._background.texts(self.store, self._digest, self.lm)

    def root(self, what: str, asked: Any, run: Callable[[], Any]) -> Any:
        """What the root says to `asked`, measured once for each device and number of threads."""
        identity = {
            "what": what,
            "asked": digest_of(asked),
            "device": self.lm.device.type,
            "threads": torch.get_num_threads(),
        }
        return self._roots.once("answers", identity, lambda: {"value": run()})["value"]

    def root_answers(self, prompts: Sequence[str], new_tokens: int) -> list[str]:
        """The root's free answers, which an edited model's can be compared with."""
        return list(
            self.root(
                "checked answers",
                [list(prompts), new_tokens],
                lambda: [answer.text for answer in self.ask(prompts, new_tokens)],
            )
        )

    def ask(
        self, prompts: Sequence[str], new_tokens: int, said: Sequence[str] | None = None
    ) -> list[Generation]:
        """Free answers of whatever overlay is applied; `said`: the root's, under the same limit."""
        return asked_again(self.lm, prompts, said, new_tokens)

    def make(
        self,
        choices: Choices,
        edits: Sequence[Edit],
        *,
        parent: Mapping[str, Tensor] | None = None,
        ledger: Sequence[Edit] = (),
        avoid: Sequence[str] = (),
        anchors: Sequence[str] | None = None,
        relations: Mapping[str, Relation] | None = None,
        progress: Progress = lambda _: None,
    ) -> Made:
        """Edit as workers/edit_process.py does: its anchors, and its background less the edited subjects.

        `anchors`: instead of the catalogue's; `relations`: for edits that name one.

        Raises:
            EditingError, NoSuchBlock: the method can't do this.
            RuntimeError: the root is not what it was.
        """
        in_force = [*edits, *ledger]
        chosen = plan(self.lm, choices.method, choices.blocks, choices.constraint)
        catalogue, contrasting = builtin_catalogue(), chosen.preset.contrasts
        count = anchors_wanted(chosen, choices.blocks)
        measuring = [0.0]

        def background(names: Sequence[str]) -> Covariance:
            started = time.perf_counter()
            whole = self._background.of(self.store, self._digest, self.lm, names)
            found = apart_from(self.lm, whole, self._texts(), in_force)
            measuring[0] += time.perf_counter() - started
            return found

        # Its texts are written once for a model, like the rest of the background: no part of the edit.
        silent = self._background.running_text(self.store, self._digest, self.lm, in_force)
        asked = self._background.asked(self.store, self._digest, self.lm)

        def read_apart(texts: RunningText) -> RunningText:
            def read(names: Sequence[str]) -> dict[str, list[Tensor]]:
                started = time.perf_counter()
                found = texts.read(names)
                measuring[0] += time.perf_counter() - started
                return found

            return replace(texts, read=read)

        started = time.perf_counter()
        if anchors is None:
            anchors = draw(
                catalogue, in_force, relations or {}, count, choices.seed, avoid, contrasting=contrasting
            )
        edited = edit(
            self.lm,
            parent=parent or {},
            edits=edits,
            ledger=ledger,
            relations=relations or {},
            anchors=anchors,
            method=choices.method,
            blocks=choices.blocks,
            constraint=choices.constraint,
            seed=choices.seed,
            progress=progress,
            background=background,
            texts=read_apart(silent) if chosen.reads_texts else None,
            asked=read_apart(asked),
        )
        seconds = time.perf_counter() - started - measuring[0]
        if root_digest(self.lm) != self._digest:
            raise RuntimeError(f"{choices.method.name} has changed the root.")
        return Made(edited, seconds, measuring[0])


def asked_of(
    blocks: str | None = None,
    norm: str | None = None,
    radius: float | None = None,
    sets: list[str] | None = None,
) -> dict[str, Any]:
    """The choices that are not left to the method."""
    asked: dict[str, Any] = {}
    if blocks is not None:
        named = blocks in ("auto", "first", "last")
        asked["blocks"] = blocks if named else [int(block) for block in blocks.split(",")]
    if norm is not None:
        asked["norm"] = norm
    if radius is not None:
        asked["radius"] = radius
    for text in sets or []:
        name, _, value = text.partition("=")
        try:
            asked[name] = json.loads(value)
        except json.JSONDecodeError:
            asked[name] = value
    return asked


def home(model: Path, bench: Path = BENCH) -> Path:
    """The folder of all that is known of a model: by its files, so that a report need not load it.

    By its weights and its tokenizer alone: what else is written beside them differs between versions of
    transformers.
    """
    files = sorted([*model.glob("*.safetensors"), *model.glob("tokenizer.json")])
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return bench / digest.hexdigest()[:12]


def default_model(bench: Path = BENCH, store: Path = STORE) -> Path:
    """The store's root if it has just one, else the default model, brought in once."""
    roots = [path for path in (store / "roots").glob("*") if path.is_dir()]
    if len(roots) == 1:
        return roots[0]
    folder = bench / "model"
    if not folder.exists():
        partial = bench / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        import_source(DEFAULT_SOURCE, partial)
        partial.rename(folder)
    return folder
