"""Torch: each root once in memory, and a version's tensors laid over it for the length of one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint, MissingCheckpoint
from factedit.models import LanguageModel, load_model, pick_device
from factedit.overlay import OverlayMismatch, applied
from workers.predictor.answers import answer_batch
from workers.predictor.errors import BadQuestion, Corrupt, EngineLost, Missing
from workers.predictor.questions import Answer, Question, Weights

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedWeights:
    """Bytes that were verified against the very digests in `weights`. Only `TorchEngine.load` makes one."""

    weights: Weights
    root_folder: Path
    overlay: Mapping[str, Tensor]

    @property
    def n_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.overlay.values())


class TorchEngine:
    """Answers from a checkpoint store; `load` and `answer` each belong to one thread of their own."""

    def __init__(self, store: CheckpointStore, *, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._store = store
        self._device = pick_device(device)
        self._roots: dict[str, LanguageModel] = {}

    def roots(self) -> list[str]:
        """Digests of the roots in memory."""
        return list(self._roots)

    def load(self, weights: Weights) -> LoadedWeights:
        try:
            folder = self._store.root_folder(weights.root_digest)
            overlay = self._store.load_overlay(weights.overlay_digest) if weights.overlay_digest else {}
        except CorruptCheckpoint as error:
            raise Corrupt(error.digest, str(error)) from error
        except MissingCheckpoint as error:
            raise Missing(error.digest, str(error)) from error
        return LoadedWeights(weights, folder, {name: t.to(self._device) for name, t in overlay.items()})

    def answer(
        self, loaded: LoadedWeights, questions: Sequence[Question], max_tokens: int
    ) -> list[Answer | BadQuestion]:
        try:
            lm = self._root(loaded)
            with applied(lm, loaded.overlay):
                return answer_batch(lm, questions, max_tokens)
        except OverlayMismatch as error:
            raise BadQuestion(f"The overlay does not fit the root: {error}.") from error
        except torch.AcceleratorError as error:
            raise EngineLost(str(error)) from error

    def _root(self, loaded: LoadedWeights) -> LanguageModel:
        # On this thread, since transformers changes the process's default dtype while it loads.
        digest = loaded.weights.root_digest
        if digest not in self._roots:
            lm = load_model(loaded.root_folder, device=str(self._device))
            self._roots[digest] = lm
            log.info("root_loaded", digest=digest, device=str(self._device))
        return self._roots[digest]
