"""The child's bench: the store, and the root it worked on last, kept loaded between orders."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore, CorruptCheckpoint, MissingCheckpoint
from factedit.curvature import Covariance
from factedit.disk import StorageFull
from factedit.models import LanguageModel, ModelError, load_model
from factedit.overlay import OverlayMismatch, root_digest
from factedit.running_text import RunningText
from workers.background import Background, ProgressFn
from workers.orders import EditOrder, Order
from workers.work import WorkFailed


class RootChanged(Exception):
    """The root's tensors are not what they were when they were loaded; this process is of no more use."""


class Bench:
    """One root at a time: two of them may not fit."""

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._loaded: tuple[tuple[str, str], LanguageModel] | None = None
        self._store: CheckpointStore | None = None
        self._tensors_digest = ""
        self._background = Background()

    def store(self, folder: Path) -> CheckpointStore:
        if self._store is None or self._store.path != folder:
            self._store = CheckpointStore(folder)
        return self._store

    def root(self, order: Order) -> LanguageModel:
        """The order's root, ready to compute."""
        wanted = (order.root_digest, order.device)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None
            self._background = Background()
            lm = load_model(self.store(order.store_dir).root_folder(order.root_digest), device=order.device)
            self._tensors_digest = root_digest(lm)
            self._loaded = wanted, lm
        return self._loaded[1]

    def background(self, order: Order, names: Sequence[str], told: ProgressFn) -> Covariance:
        """What enters the matrices `names` while the order's root reads the background."""
        lm = self.root(order)
        return self._background.of(self.store(order.store_dir), order.root_digest, lm, names, told)

    def texts(self, order: Order) -> list[str]:
        """What the order's root writes by itself."""
        lm = self.root(order)
        return self._background.texts(self.store(order.store_dir), order.root_digest, lm)

    def running_text(self, order: EditOrder) -> RunningText:
        """What the order's neurons are to be silent in."""
        lm, in_force = self.root(order), [*order.edits, *order.ledger]
        return self._background.running_text(self.store(order.store_dir), order.root_digest, lm, in_force)

    def asked(self, order: EditOrder) -> RunningText:
        """What is asked of anybody, as the order's root reads it."""
        lm = self.root(order)
        return self._background.asked(self.store(order.store_dir), order.root_digest, lm)

    def overlay(self, order: Order, digest: str | None) -> dict[str, Tensor]:
        return {} if digest is None else self.store(order.store_dir).load_overlay(digest)

    def check_root(self) -> dict[str, str | bool]:
        """The digest of the root's tensors when they were loaded, and now.

        Raises:
            RootChanged
        """
        assert self._loaded is not None
        after = root_digest(self._loaded[1])
        if after != self._tensors_digest:
            raise RootChanged
        return {"root_digest": self._tensors_digest, "root_digest_after": after, "root_unchanged": True}


@contextmanager
def complaints() -> Iterator[None]:
    """What is wrong with the store or the model, in words for the user."""
    try:
        yield
    except StorageFull as error:
        raise WorkFailed(
            "storage_full", "The disk of the checkpoint store is full; free some room."
        ) from error
    except CorruptCheckpoint as error:
        raise WorkFailed("corrupt_checkpoint", f"{error} ({error.digest})", error.digest) from error
    except MissingCheckpoint as error:
        raise WorkFailed("missing_checkpoint", f"{error} ({error.digest})", error.digest) from error
    except ModelError as error:
        raise WorkFailed(
            "model_not_usable", "The model's root can't be loaded as it is in the store."
        ) from error
    except OverlayMismatch as error:
        raise WorkFailed("model_not_usable", f"A version does not fit its root: {error}") from error
