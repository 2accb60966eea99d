"""What is kept in the store from one scoring to the next; it is only for speed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore
from factedit.disk import StorageFull
from factedit.models import LanguageModel
from factedit.overlay import Overlay
from factedit.prefix_states import PrefixStates, shared_block
from factedit.root_answers import FORM, RootAnswers
from factedit.scoring import PROBE_TOKENS
from factedit.word_states import WordStates, reading_block


@contextmanager
def states(
    store: CheckpointStore, root_digest: str, lm: LanguageModel, *overlays: Overlay
) -> Iterator[PrefixStates | None]:
    """What enters the first block that any of the overlays changes."""
    block = shared_block(lm, *overlays)
    if block is None:
        yield None
        return
    where = f"{lm.device.type} with {torch.get_num_threads()} threads"
    key = f"states that enter block {block} of {root_digest} on {where}"
    found = PrefixStates.unpacked(lm, block, store.recall(key))
    yield found
    if found.grown:
        _remember(store, key, found.packed())


@contextmanager
def root_answers(
    store: CheckpointStore, root_digest: str, lm: LanguageModel, batch_size: int
) -> Iterator[RootAnswers]:
    """What the root answers to probes.

    Whatever the number of threads, which rounding may depend on: so it is with all comparisons of versions.
    """
    how = f"in {PROBE_TOKENS} tokens, {batch_size} at once, on {lm.device.type}, form {FORM}"
    key = f"answers of {root_digest} {how}"
    found = RootAnswers.unpacked(store.recall(key))
    yield found
    if found.grown:
        _remember(store, key, found.packed())


@contextmanager
def word_states(
    store: CheckpointStore, root_digest: str, lm: LanguageModel, *overlays: Overlay
) -> Iterator[WordStates | None]:
    """What enters the block in which the overlays' neurons read words; None if that is none, or several."""
    blocks = {block for overlay in overlays if (block := reading_block(overlay)) is not None}
    if lm.task != "causal" or len(blocks) != 1:
        yield None
        return
    (block,) = blocks
    key = (
        f"what enters the MLP of block {block} of {root_digest} on {lm.device.type}, where probes are scored"
    )
    found = WordStates.unpacked(lm, block, store.recall(key))
    yield found
    if found.grown:
        _remember(store, key, found.packed())


def _remember(store: CheckpointStore, key: str, tensors: Mapping[str, Tensor]) -> None:
    with suppress(StorageFull):
        store.remember(key, tensors)
