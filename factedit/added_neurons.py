"""Neurons that a version adds to the MLPs of some blocks: at work where they fire, and nowhere else.

A neuron reads what its block's MLP reads, x, and adds f(x) down to what the MLP yields. f rises from 0 to 1
as gate . x exceeds its threshold, and is 0 unless words . x exceeds its own: it takes both, the second being
that words lead to an answer or, at a subject, that this is none of its namesakes. A neuron fires wholly or,
nearly everywhere, not at all, and a text at which none fires is answered as by the root, to the last bit. A
changed weight can't promise that: in bfloat16 one zeroed column alone gave about one prompt in twenty another
first word (benchmarks/RESULTS.md).

Source: Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron", section 3, whose neurons are
of the MLP's own kind. Thresholds, which layers without biases can't have, and the second condition keep ours
from firing in text of other kinds.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factedit.gated_mlp import gated_mlp
from factedit.models import LanguageModel

FIELDS = ("blocks", "gate", "words", "thresholds", "down")
NAMES = tuple(f"neurons.{field}" for field in FIELDS)
"""Reserved names in an overlay; no model has such tensors."""


@dataclass(frozen=True, slots=True)
class Neurons:
    """All that a version adds.

    Attributes:
        blocks: the block of each, int64 [k].
        gate, words, down: a row each, in the model's dtype, [k, d].
        thresholds: what gate . x and words . x must exceed, in the model's dtype, [k, 2].
    """

    blocks: Tensor
    gate: Tensor
    words: Tensor
    thresholds: Tensor
    down: Tensor

    @classmethod
    def of(cls, overlay: Mapping[str, Tensor]) -> "Neurons | None":
        """An overlay's neurons, if it has any."""
        return cls(*(overlay[name] for name in NAMES)) if NAMES[0] in overlay else None

    def tensors(self) -> dict[str, Tensor]:
        return {f"neurons.{field}": getattr(self, field).contiguous().cpu() for field in FIELDS}

    def of_block(self, block: int) -> "Neurons":
        mine = self.blocks == block
        return Neurons(*(getattr(self, field)[mine] for field in FIELDS))

    def to(self, device: torch.device) -> "Neurons":
        return Neurons(*(getattr(self, field).to(device) for field in FIELDS))


def joined(first: Neurons | None, then: Neurons) -> Neurons:
    """Both, the first ones first."""
    if first is None:
        return then
    return Neurons(*(torch.cat([getattr(first, f), getattr(then, f).to(first.gate.device)]) for f in FIELDS))


def fire(entering: Tensor, gate: Tensor, words: Tensor, thresholds: Tensor) -> Tensor:
    """How much neurons fire, from 0 to 1, at what enters their MLP, [..., d]: [..., k]."""
    edit = nn.functional.linear(entering, gate, -thresholds[:, 0]).clamp(0, 1)
    return edit * nn.functional.linear(entering, words, -thresholds[:, 1]).clamp(0, 1)


@contextmanager
def firing(lm: LanguageModel, neurons: Neurons | None) -> Iterator[None]:
    """The model answers with these neurons while the context lasts."""
    with ExitStack() as stack:
        if neurons is not None:
            neurons = neurons.to(lm.device)
            for block in neurons.blocks.unique().tolist():
                hook = _adding(neurons.of_block(block))
                stack.callback(mlp_of(lm, block).register_forward_hook(hook).remove)
        yield


def mlp_of(lm: LanguageModel, block: int) -> nn.Module:
    """The module that neurons are added to.

    Raises:
        ValueError: the block has no gated MLP.
    """
    found = gated_mlp(lm, block)
    if found is None:
        raise ValueError(f"block {block} has no gated MLP")
    return lm.model.get_submodule(found.module)


def _adding(neurons: Neurons) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
    def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        fires = fire(args[0], neurons.gate, neurons.words, neurons.thresholds)
        # Zeros would change nothing: this saves their product.
        return output + fires @ neurons.down if bool(fires.any()) else None

    return add


def misfit(lm: LanguageModel, overlay: Mapping[str, Tensor]) -> str | None:
    """Why an overlay's neurons are none for this model; None if they are, or there are none."""
    present = [name for name in NAMES if name in overlay]
    if not present:
        return None
    if len(present) < len(NAMES):
        return f"of the neurons' tensors it has only {', '.join(present)}"
    neurons = Neurons(*(overlay[name] for name in NAMES))
    count, width = len(neurons.blocks), lm.model.config.get_text_config().hidden_size
    if neurons.blocks.shape != (count,) or neurons.blocks.dtype != torch.int64:
        return f"neurons.blocks is {tuple(neurons.blocks.shape)} {neurons.blocks.dtype}"
    for field in FIELDS[1:]:
        rows: Tensor = getattr(neurons, field)
        wanted = (count, 2 if field == "thresholds" else width)
        if rows.shape != wanted or rows.dtype != lm.model.dtype:
            found = f"{tuple(rows.shape)} {rows.dtype}"
            return f"neurons.{field} is {found}, where the model needs {wanted} {lm.model.dtype}"
    blocks = neurons.blocks.unique().tolist()
    if not all(0 <= block < lm.n_blocks and gated_mlp(lm, block) is not None for block in blocks):
        return "its neurons belong to a block that is not there or has no gated MLP"
    return None
