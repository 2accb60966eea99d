"""What enters a block while the root reads: the same in every version that changes nothing below the block.

So it is computed once for each sequence of tokens and kept, on the disk too (workers.score_process). A state
must not depend on what else was read with it, else answers would depend on what was asked in earlier jobs. A
row's rounding depends on the shape of its batch, but on nothing else of it; so all batches have one shape.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from factedit.forward import block_input
from factedit.memory import Memory
from factedit.models import LanguageModel
from factedit.overlay import RESERVED, Overlay
from factedit.prompts import Example, collate

ROWS, COLUMNS = 64, 8
"""Sequences are read so many at a time, their lengths rounded up to a multiple of `COLUMNS`."""

MAX_BYTES = 64 << 20
"""Of states that are kept; all catalogue probes of the default model take less."""

WORTH_IT = 0.2
"""Of the blocks, at least so many must lie below, or reading the states costs about what they save."""

Ids = tuple[int, ...]


class PrefixStates:
    """The states [tokens, d] that enter `block`, by the tokens read. `grown`: since they were unpacked."""

    def __init__(self, block: int, states: Mapping[Ids, Tensor] | None = None) -> None:
        self.block = block
        self.grown = False
        self._states: dict[Ids, Tensor] = dict(states or {})
        self._bytes = sum(state.nbytes for state in self._states.values())

    def of(self, lm: LanguageModel, read: Sequence[Ids]) -> Tensor:
        """For a batch of sequences, padded on the right: [B, L, d]. Computes and keeps what is missing.

        The weights below the block must be the root's.
        """
        missing = sorted({ids for ids in read if ids not in self._states}, key=lambda ids: (len(ids), ids))
        new: dict[Ids, Tensor] = {}
        for width in sorted({_width(ids) for ids in missing}):
            alike = [ids for ids in missing if _width(ids) == width]
            for start in range(0, len(alike), ROWS):
                new.update(_read(lm, self.block, alike[start : start + ROWS], width))
        found = [new[ids] if ids in new else self._states[ids] for ids in read]
        for ids, state in new.items():
            self._keep(ids, state)
        return torch.nn.utils.rnn.pad_sequence([state.to(lm.device) for state in found], batch_first=True)

    def _keep(self, ids: Ids, state: Tensor) -> None:
        if self._bytes + state.nbytes <= MAX_BYTES:
            self._states[ids] = state
            self._bytes += state.nbytes
            self.grown = True

    # As tensors

    def packed(self) -> dict[str, Tensor]:
        """For `unpacked`: sequences behind one another."""
        ids = [token for each in self._states for token in each]
        lengths = [len(each) for each in self._states]
        return {
            "ids": torch.tensor(ids, dtype=torch.int32),
            "lengths": torch.tensor(lengths, dtype=torch.int32),
            "states": torch.cat([state.cpu() for state in self._states.values()]),
        }

    @classmethod
    def unpacked(cls, lm: LanguageModel, block: int, tensors: Mapping[str, Tensor] | None) -> "PrefixStates":
        """What was packed; empty if it is not of this form, or of another model."""
        width = lm.model.config.get_text_config().hidden_size
        try:
            ids, lengths, states = (tensors[name] for name in ("ids", "lengths", "states"))  # type: ignore[index]
            counts = lengths.tolist()
            if states.shape != (len(ids), width) or states.dtype != lm.model.dtype or min(counts) < 1:
                return cls(block)
            parts = states.split(counts), ids.split(counts)
        except (KeyError, TypeError, ValueError, RuntimeError):
            return cls(block)
        return cls(block, {tuple(i.tolist()): state for state, i in zip(*parts, strict=True)})


def shared_block(lm: LanguageModel, *overlays: Overlay) -> int | None:
    """The first block that any of the overlays changes; None if skipping what is below is not worth it."""
    first = min((_first_changed(lm, overlay) for overlay in overlays), default=0)
    worth_it = lm.task == "causal" and WORTH_IT * lm.n_blocks <= first < lm.n_blocks
    return first if worth_it else None


def _first_changed(lm: LanguageModel, overlay: Overlay) -> int:
    changed = [lm.block_of(name) or 0 for name in overlay if name not in RESERVED]
    memory = Memory.of(overlay)
    looked_up = [] if memory is None else memory.blocks.tolist()
    return min([*changed, *looked_up], default=lm.n_blocks)


def _width(ids: Ids) -> int:
    return -(-len(ids) // COLUMNS) * COLUMNS


def _read(lm: LanguageModel, block: int, read: Sequence[Ids], width: int) -> dict[Ids, Tensor]:
    filled = [Example((*ids, *(0,) * (width - len(ids))), (), ()) for ids in read]
    filled += filled[:1] * (ROWS - len(filled))
    with torch.inference_mode():
        states = block_input(lm, collate(lm, filled, range(ROWS)), block)
    return {ids: states[row, : len(ids)].clone() for row, ids in enumerate(read)}
