"""Train a small BERT until it has memorised facts; cut off at any moment, it goes on where it was.

All of a run's state is one file (`state.safetensors`: weights, Adam's moments, counts), replaced whole.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from benchmarks.cells import digest_of
from benchmarks.masked_data import MASK, Amounts, Cloze
from benchmarks.masked_model import (
    SPECIAL,
    Shape,
    build_model,
    build_tokenizer,
    examples_of,
    memorised,
    right,
)
from factedit.forward import target_logits
from factedit.models import LanguageModel, pick_device
from factedit.prompts import Batch, Example, collate

POOL = 16
"""So many batches are drawn together and sorted by length, so that little of them is padding."""
WARM_UP = 100
NEAR = 0.15
"""All facts are asked once the answers seen while training are this near to what is waited for."""

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What makes one run another: all but how long it lasts.

    Attributes:
        noise: the share of ordinary tokens that are masked at random beside the object.
        early: the share of facts at which an early state is kept as well.
    """

    amounts: Amounts = field(default_factory=Amounts)
    shape: Shape = field(default_factory=Shape)
    batch: int = 32
    learning_rate: float = 1e-3
    noise: float = 0.15
    early: float = 0.5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """When this call ends: at a share of facts memorised, or after so many steps in all, or seconds now."""

    share: float = 0.98
    steps: int = 5000
    seconds: float = 480.0


def noised(lm: LanguageModel, batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """The batch with ordinary tokens hidden too, and to be predicted: Devlin et al. 2018, section 3.1."""
    ids = batch.input_ids.clone()
    special = torch.tensor(lm.tokenizer.all_special_ids, device=ids.device)

    def drawn() -> Tensor:
        return torch.rand(ids.shape, generator=generator).to(ids.device)

    hidden = (drawn() < share) & ~torch.isin(ids, special)
    rows, cols = hidden.nonzero(as_tuple=True)
    how, targets = drawn(), ids[hidden]
    others = torch.randint(len(SPECIAL), len(lm.tokenizer), ids.shape, generator=generator).to(ids.device)
    ids = torch.where(hidden & (how < 0.8), torch.full_like(ids, lm.tokenizer.mask_token_id or 0), ids)
    ids = torch.where(hidden & (how >= 0.9), others, ids)
    return replace(
        batch,
        input_ids=ids,
        rows=torch.cat([batch.rows, rows]),
        cols=torch.cat([batch.cols, cols]),
        targets=torch.cat([batch.targets, targets]),
    )


def batches_of(examples: Sequence[Example], size: int, generator: torch.Generator) -> list[list[int]]:
    """All examples once, shuffled, in batches of like length."""
    order = torch.randperm(len(examples), generator=generator).tolist()
    found: list[list[int]] = []
    for start in range(0, len(order), size * POOL):
        pool = sorted(order[start : start + size * POOL], key=lambda i: len(examples[i].ids))
        found += [pool[at : at + size] for at in range(0, len(pool), size)]
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]


# The run


class OtherRun(Exception):
    """The folder holds a run with other settings."""


class Memoriser:
    """One run in one folder: `model` and `early` are ordinary Hugging Face folders.

    Raises:
        OtherRun: the folder was begun with other settings.
    """

    def __init__(
        self, folder: Path, clozes: Sequence[Cloze], settings: Settings, device: str = "auto"
    ) -> None:
        disable_progress_bar()  # of transformers
        self.folder, self.clozes, self.settings = folder, list(clozes), settings
        folder.mkdir(parents=True, exist_ok=True)
        self._same_settings()
        self.lm = self._built(pick_device(device))
        self.names = list(self.lm.tensors)
        self.state: State = {"steps": 0, "seconds": 0.0, "memorised": 0.0, "early": None}
        self._optimizer = torch.optim.AdamW(
            self.lm.tensors.values(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self._resume()
        said = [(text, c.memory.object) for c in clozes for text in (*c.evidence, *c.patterns)]
        self._examples = examples_of(self.lm, said)

    def train(self, limits: Limits, say: Callable[[str], None] = lambda _: None) -> State:
        """Train until a limit is reached; what was reached, as it is kept in `state.json`."""
        started, why = time.perf_counter(), ""
        self.lm.model.train().requires_grad_(True)
        before = self.state["seconds"]
        if self.state["memorised"] >= limits.share:
            why = "enough facts are memorised"
        while not why:
            shares = []
            for index in self._rest_of_epoch():
                shares.append(self._step(index))
                now = time.perf_counter() - started
                if self.state["steps"] >= limits.steps:
                    why = f"{limits.steps} steps are taken"
                elif now >= limits.seconds:
                    why = f"{limits.seconds:g} s are over"
                if why:
                    break
            seen = sum(shares) / max(1, len(shares))
            wanted = limits.share if self.state["early"] is not None else self.settings.early
            if why or seen >= wanted - NEAR:
                self._look()
                if self.state["memorised"] >= limits.share:
                    why = "enough facts are memorised"
            self.state["seconds"] = before + time.perf_counter() - started
            say(self._told(seen))
            self._keep()
        self.lm.model.eval().requires_grad_(False)
        self._finish(why)
        return self.state

    # Steps

    def _rest_of_epoch(self) -> Iterator[list[int]]:
        size = self.settings.batch
        an_epoch = -(-len(self._examples) // size)
        epoch, done = divmod(self.state["steps"], an_epoch)
        generator = torch.Generator().manual_seed(self.settings.seed + epoch)
        yield from batches_of(self._examples, size, generator)[done:]

    def _step(self, index: list[int]) -> float:
        """One step; the share of the batch's objects that were right before it."""
        settings, step = self.settings, self.state["steps"]
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        batch = noised(self.lm, collate(self.lm, self._examples, index), settings.noise, generator)
        logits = target_logits(self.lm, batch)
        losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        own, rest = losses[: len(index)], losses[len(index) :]
        loss = own.mean() + (rest.mean() if len(rest) else 0.0)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (step + 1) / WARM_UP)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.lm.tensors.values(), 1.0)
        self._optimizer.step()
        self.state["steps"] = step + 1
        found = logits[: len(index)].argmax(-1) == batch.targets[: len(index)]
        return float(found.float().mean())

    @torch.no_grad()
    def _look(self) -> None:
        found = memorised(self.lm, self.clozes)
        self.state["memorised"] = sum(found) / len(found)
        if self.state["early"] is None and self.state["memorised"] >= self.settings.early:
            self._export("early")
            self.state["early"] = self.state["memorised"]

    def _told(self, seen: float) -> str:
        return (
            f"step {self.state['steps']}, {self.state['seconds']:.0f} s: {seen:.1%} right in training, "
            f"{self.state['memorised']:.1%} of facts memorised when last asked"
        )

    # What is kept

    def _same_settings(self) -> None:
        wanted = json.dumps({**asdict(self.settings), "told": self._digest()}, indent=1)
        path = self.folder / "settings.json"
        if not path.exists():
            path.write_text(wanted, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != wanted:
            raise OtherRun(f"{self.folder} was begun with other settings or data; --again begins anew.")

    def _digest(self) -> str:
        return digest_of([asdict(cloze) for cloze in self.clozes])

    def _built(self, device: torch.device) -> LanguageModel:
        settings, folder = self.settings, self.folder / "tokenizer"
        if not folder.exists():
            texts = [t.replace(MASK, c.memory.object) for c in self.clozes for t in (*c.evidence, c.test)]
            objects = sorted({cloze.memory.object for cloze in self.clozes})
            _replaced(folder, build_tokenizer(texts, objects, settings.shape.vocabulary).save_pretrained)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return build_model(tokenizer, settings.shape, settings.seed, device)

    def _keep(self) -> None:
        moments = {
            f"{moment}/{name}": self._optimizer.state[self.lm.tensors[name]][moment]
            for name in self.names
            for moment in ("exp_avg", "exp_avg_sq")
            if self._optimizer.state[self.lm.tensors[name]]
        }
        weights = {f"weight/{name}": self.lm.tensors[name].data for name in self.names}
        partial = self.folder / "state.partial"
        save_file({**weights, **moments}, partial, metadata={"state": json.dumps(self.state)})
        partial.replace(self.folder / "state.safetensors")

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            self.state = json.loads(file.metadata()["state"])
            kept = set(file.keys())
            for name, parameter in self.lm.tensors.items():
                parameter.data.copy_(file.get_tensor(f"weight/{name}"))
                if f"exp_avg/{name}" in kept:
                    self._optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.state["steps"])),
                        **{
                            moment: file.get_tensor(f"{moment}/{name}").to(parameter.device)
                            for moment in ("exp_avg", "exp_avg_sq")
                        },
                    }

    def _export(self, name: str) -> None:
        def save(folder: Path) -> None:
            self.lm.model.save_pretrained(folder)
            self.lm.tokenizer.save_pretrained(folder)

        _replaced(self.folder / name, save)

    def _finish(self, why: str) -> None:
        self._export("model")
        test = right(self.lm, [(cloze.test, cloze.memory.object) for cloze in self.clozes])
        self.state |= {"why": why, "test": sum(test) / len(test), "facts": len(test)}
        self.state |= {"parameters": sum(p.numel() for p in self.lm.tensors.values())}
        (self.folder / "state.json").write_text(json.dumps(self.state, indent=1), encoding="utf-8")


def _replaced(folder: Path, save: Callable[[Path], Any]) -> None:
    """`folder` is what `save` writes, or what it was."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
