"""What enters a root's matrices while it reads unmodified facts: measured once, then kept in the store."""

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from factedit.anchors import background_of, background_prompts
from factedit.checkpoint_store import CheckpointStore
from factedit.curvature import Covariance, inputs_of, measure
from factedit.facts import Edit
from factedit.models import LanguageModel
from factedit.own_text import own_texts, silent_texts, speaking_of
from factedit.questions import questions
from factedit.relations import builtin_catalogue
from factedit.running_text import Moments, RunningText

ProgressFn = Callable[[int, int], None]
"""Told how many prompts are read, and of how many."""


class Background:
    """The covariances of one root that were asked for so far."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Tensor, int]] = {}
        self._texts: dict[str, list[str]] = {}
        self._entering: dict[tuple[str, str], list[Tensor]] = {}
        self._moments = Moments()

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

    def running_text(
        self, store: CheckpointStore, root_digest: str, lm: LanguageModel, edits: Sequence[Edit]
    ) -> RunningText:
        """What these edits' neurons are to be silent in. Raises StorageFull, when it is read too."""
        texts = silent_texts(lm, self.texts(store, root_digest, lm))

        def read(names: Sequence[str]) -> dict[str, list[Tensor]]:
            return self._read(store, root_digest, lm, texts, names)

        return RunningText(texts, read, self._moments).but(speaking_of(texts, edits))

    def asked(self, store: CheckpointStore, root_digest: str, lm: LanguageModel) -> RunningText:
        """What is asked of anybody, of which the last tokens are kept. Raises StorageFull, when read."""
        asked = questions()

        def read(names: Sequence[str]) -> dict[str, list[Tensor]]:
            return self._read(store, root_digest, lm, asked, names, last=1)

        return RunningText(asked, read)

    def _read(
        self,
        store: CheckpointStore,
        root_digest: str,
        lm: LanguageModel,
        texts: Sequence[str],
        names: Sequence[str],
        last: int = 0,
    ) -> dict[str, list[Tensor]]:
        """`last`: so many tokens of each text alone, unless 0."""
        read = hashlib.sha256("\n".join([*texts, *([f"last {last}"] if last else [])]).encode()).hexdigest()
        keys = {name: f"what enters {name} of {root_digest} on {lm.device.type} in {read}" for name in names}
        for name, key in keys.items():
            if (name, read) not in self._entering and (kept := store.recall(key)) is not None:
                rows = kept["rows"].to(lm.device)
                self._entering[name, read] = list(rows.split(kept["lengths"].tolist()))
        if missing := [name for name in names if (name, read) not in self._entering]:
            found = inputs_of(lm, missing, texts)
            for name in missing:
                # A view of the last ones would keep all the others.
                entering = [rows[-last:].clone() if last else rows for rows in found[name]]
                self._entering[name, read] = entering
                lengths = torch.tensor([len(rows) for rows in entering])
                store.remember(keys[name], {"rows": torch.cat(entering), "lengths": lengths})
        return {name: self._entering[name, read] for name in names}

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
        keys = {name: f"covariance of {name} in {root_digest} over {read}" for name in names}
        for name in names:
            if name not in self._held and (kept := store.recall(keys[name])) is not None:
                self._held[name] = kept["sum"].to(lm.device), int(kept["tokens"])
        missing = [name for name in names if name not in self._held]
        if missing:
            found = measure(lm, missing, prompts, progress)
            for name in missing:
                self._held[name] = found.sums[name], found.tokens
                store.remember(keys[name], {"sum": found.sums[name], "tokens": torch.tensor(found.tokens)})
        tokens = min((self._held[name][1] for name in names), default=0)
        return Covariance({name: self._held[name][0] for name in names}, tokens)


def apart_from(
    lm: LanguageModel, whole: Covariance, texts: Sequence[str], edits: Sequence[Edit]
) -> Covariance:
    """The background without what it says of edited subjects: that is not to be left alone."""
    mine = [*background_of(builtin_catalogue(), edits), *speaking_of(texts, edits)]
    return whole.minus(measure(lm, list(whole.sums), mine)) if mine else whole
