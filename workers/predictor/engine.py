"""Torch: each root once in memory, and a version's tensors laid over it for the length of its turn."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import torch
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint, MissingCheckpoint
from factedit.decoding import Decoder, can_decode
from factedit.models import LanguageModel, load_model, pick_device
from factedit.overlay import OverlayMismatch, applied
from workers.predictor.errors import BadQuestion, Corrupt, EngineLost, Missing
from workers.predictor.free import TokenByToken, WholeBatches
from workers.predictor.questions import Asked, Weights
from workers.predictor.session import Result, Session

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class LoadedWeights:
    """Bytes that were verified against the very digests in `weights`. Only `TorchEngine.load` makes one.

    `session`: the compute thread's, from the first turn on.
    """

    weights: Weights
    root_folder: Path
    overlay: Mapping[str, Tensor]
    session: Session | None = field(default=None, init=False)

    @property
    def n_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.overlay.values())


@dataclass(slots=True, eq=False)
class _Root:
    """A root in memory, and the version that now lies over it. Only pointers move when that changes."""

    lm: LanguageModel
    by_token: bool
    over: LoadedWeights | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def lay(self, loaded: LoadedWeights) -> None:
        if self.over is loaded:
            return
        self.over = None
        self._stack.close()
        self._stack.enter_context(applied(self.lm, loaded.overlay))
        self.over = loaded


class TorchEngine:
    """Answers from a checkpoint store; `load` and `turn` each belong to one thread of their own."""

    def __init__(self, store: CheckpointStore, *, device: str, threads: int, max_batch: int) -> None:
        torch.set_num_threads(threads)
        self._store = store
        self._device = pick_device(device)
        self._max_batch = max_batch
        self._roots: dict[str, _Root] = {}

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

    def turn(self, loaded: LoadedWeights, joining: Sequence[Asked], leaving: Sequence[Asked]) -> list[Result]:
        try:
            root = self._root(loaded)
            root.lay(loaded)
            if loaded.session is None:
                loaded.session = self._session(root)
            return loaded.session.turn(joining, leaving)
        except OverlayMismatch as error:
            raise BadQuestion(f"The overlay does not fit the root: {error}.") from error
        except torch.AcceleratorError as error:
            raise EngineLost(str(error)) from error
        except Exception:
            loaded.session = None  # whatever was under way in it is begun anew
            raise

    def _session(self, root: _Root) -> Session:
        if root.by_token:
            decoder = Decoder(root.lm, max_rows=self._max_batch)
            return Session(root.lm, TokenByToken(root.lm, decoder))
        return Session(root.lm, WholeBatches(root.lm, self._max_batch))

    def _root(self, loaded: LoadedWeights) -> _Root:
        # On this thread, since transformers changes the process's default dtype while it loads.
        digest = loaded.weights.root_digest
        if digest not in self._roots:
            lm = load_model(loaded.root_folder, device=str(self._device))
            root = self._roots[digest] = _Root(lm, can_decode(lm))
            log.info("root_loaded", digest=digest, device=str(self._device), by_token=root.by_token)
        return self._roots[digest]
