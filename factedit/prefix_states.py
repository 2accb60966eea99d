"""What enters a block while the root reads: the same in every version that changes nothing below the block.

So it is computed once for each sequence of tokens and kept, on the disk too (workers.kept). With
batches of one shape (factedit.fixed_shape) it is, to the last bit, what a pass through all blocks computes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.fixed_shape import fixed
from factedit.forward import block_input
from factedit.memory import Memory
from factedit.models import LanguageModel
from factedit.overlay import RESERVED, Overlay
from factedit.prompts import Example

MAX_BYTES = 64 << 20
"""Of states that are kept; all catalogue probes of the default model take less."""

WORTH_IT = 0.2
"""Of the blocks, at least so many must lie below, or reading the states costs about what they save."""

Ids = tuple[int, ...]
Read = tuple[int, int, Ids]
"""The shape of the batch, and a sequence in it."""


class PrefixStates:
    """The states [tokens, d] that enter `block`, by what was read. `grown`: since they were unpacked."""

    def __init__(self, block: int, states: Mapping[Read, Tensor] | None = None) -> None:
        self.block = block
        self.grown = False
        self._states: dict[Read, Tensor] = dict(states or {})
        self._bytes = sum(state.nbytes for state in self._states.values())

    def of(self, lm: LanguageModel, sequences: Sequence[Ids], rows: int, width: int) -> Tensor:
        """For at most `rows` sequences, as in a batch of that shape: [rows, width, d], padded with zeros.

        Computes and keeps what is missing. The weights below the block must be the root's.
        """
        missing = sorted({ids for ids in sequences if (rows, width, ids) not in self._states})
        new = _read(lm, self.block, missing, rows, width) if missing else {}
        found = [new[ids] if ids in new else self._states[rows, width, ids] for ids in sequences]
        whole = found[0].new_zeros((rows, width, found[0].shape[-1]), device=lm.device)
        for row, state in enumerate(found):
            whole[row, : len(state)] = state
        for ids, state in new.items():
            self._keep((rows, width, ids), state)
        return whole

    def _keep(self, read: Read, state: Tensor) -> None:
        if self._bytes + state.nbytes <= MAX_BYTES:
            self._states[read] = state
            self._bytes += state.nbytes
            self.grown = True

    # As tensors

    def packed(self) -> dict[str, Tensor]:
        """For `unpacked`: sequences behind one another."""
        ids = [token for *_, each in self._states for token in each]
        shapes = [(rows, width, len(each)) for rows, width, each in self._states]
        return {
            "ids": torch.tensor(ids, dtype=torch.int32),
            "shapes": torch.tensor(shapes, dtype=torch.int32),
            "states": torch.cat([state.cpu() for state in self._states.values()]),
        }

    @classmethod
    def unpacked(cls, lm: LanguageModel, block: int, tensors: Mapping[str, Tensor] | None) -> "PrefixStates":
        """What was packed; empty if it is not of this form, or of another model."""
        size = lm.model.config.get_text_config().hidden_size
        try:
            ids, shapes, states = (tensors[name] for name in ("ids", "shapes", "states"))  # type: ignore[index]
            if states.shape != (ids.numel(), size) or states.dtype != lm.model.dtype or ids.ndim != 1:
                return cls(block)
            lengths = shapes[:, 2].tolist()
            reads = [
                (rows, width, tuple(each.tolist()))
                for (rows, width, _), each in zip(shapes.tolist(), ids.split(lengths), strict=True)
            ]
            return cls(block, dict(zip(reads, states.split(lengths), strict=True)))
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError):
            return cls(block)


def shared_block(lm: LanguageModel, *overlays: Overlay) -> int | None:
    """The first block that any of the overlays changes; None if skipping what is below is not worth it."""
    first = min((_first_changed(lm, overlay) for overlay in overlays), default=0)
    worth_it = lm.task == "causal" and WORTH_IT * lm.n_blocks <= first < lm.n_blocks
    return first if worth_it else None


def _first_changed(lm: LanguageModel, overlay: Overlay) -> int:
    changed = [lm.block_of(name) or 0 for name in overlay if name not in RESERVED]
    beside = [found.blocks.tolist() for found in (Neurons.of(overlay), Memory.of(overlay)) if found]
    return min([*changed, *(block for blocks in beside for block in blocks)], default=lm.n_blocks)


@torch.inference_mode()
def _read(
    lm: LanguageModel, block: int, sequences: Sequence[Ids], rows: int, width: int
) -> dict[Ids, Tensor]:
    states = block_input(lm, fixed(lm, [Example(ids, (), ()) for ids in sequences], rows, width), block)
    return {ids: states[row, : len(ids)].clone() for row, ids in enumerate(sequences)}
