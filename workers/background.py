"""What enters a root's matrices while it reads unmodified facts: measured once, then kept in the store."""

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from factedit.anchors import background_of, background_prompts
from factedit.checkpoint_store import CheckpointStore
from factedit.curvature import Covariance, measure
from factedit.facts import Edit
from factedit.models import LanguageModel
from factedit.own_text import own_texts, speaking_of
from factedit.relations import builtin_catalogue

ProgressFn = Callable[[int, int], None]
"""Told how many prompts are read, and of how many."""


class Background:
    """The covariances of one root that were asked for so far."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Tensor, Tensor, int]] = {}
        self._texts: dict[str, list[str]] = {}

    def texts(self, store: CheckpointStore, root_digest: str, lm: LanguageModel) -> list[str]:
        """What the root writes by itself. Raises StorageFull."""
        if root_digest not in self._texts:
            key = f"texts of {root_digest} on {lm.device.type}"
            kept = store.recall(key)
            if kept is None:
                found = json.dumps(own_texts(lm)).encode()
                kept = {"json": torch.frombuffer(bytearray(found), dtype=torch.uint8)}
                store.remember(key, kept)
            self._texts[root_digest] = json.loads(bytes(kept["json"].tolist()))
        return self._texts[root_digest]

    def of(
        self,
        store: CheckpointStore,
        root_digest: str,
        lm: LanguageModel,
        names: Sequence[str],
        progress: ProgressFn | None = None,
    ) -> Covariance:
        """Of the matrices `names`, on the model's device. Raises NoCurvature, StorageFull."""
        prompts = [*background_prompts(builtin_catalogue()), *self.texts(store, root_digest, lm)]
        read = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
        keys = {name: f"mean and covariance of {name} in {root_digest} over {read}" for name in names}
        for name in names:
            if name not in self._held and (kept := store.recall(keys[name])) is not None:
                both = kept["sum"].to(lm.device), kept["total"].to(lm.device)
                self._held[name] = *both, int(kept["tokens"])
        missing = [name for name in names if name not in self._held]
        if missing:
            found = measure(lm, missing, prompts, progress)
            for name in missing:
                self._held[name] = found.sums[name], found.totals[name], found.tokens
                parts = {"sum": found.sums[name], "total": found.totals[name]}
                store.remember(keys[name], {**parts, "tokens": torch.tensor(found.tokens)})
        tokens = min((self._held[name][2] for name in names), default=0)
        sums = {name: self._held[name][0] for name in names}
        totals = {name: self._held[name][1] for name in names}
        return Covariance(sums, tokens, totals)


def apart_from(
    lm: LanguageModel, whole: Covariance, texts: Sequence[str], edits: Sequence[Edit]
) -> Covariance:
    """The background without what it says of edited subjects: that is not to be left alone."""
    mine = [*background_of(builtin_catalogue(), edits), *speaking_of(texts, edits)]
    return whole.minus(measure(lm, list(whole.sums), mine)) if mine else whole
