"""A key-value memory beside frozen weights, at work: where a key matches, a block passes on the value.

The state that leaves a block is compared with the memory's keys at every position of every forward
pass. Where the nearest key lies nearer than its radius, the value goes on to the blocks above in the
state's place; everywhere else not a bit changes. So a position's fate depends on the text up to it
and on nothing else: greedy generation with a key-value cache (the pass over the prompt decides, a
generated token is no key and stays as it is), ranking and teacher-forced scoring see the same model,
and nobody has to say where in a batch the prompts end.

Source: Hartvigsen et al. 2023, "Aging with GRACE", section 2.2.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factedit.forward import is_skipped
from factedit.models import LanguageModel

FIELDS = ("keys", "owners", "radii", "blocks", "values")
NAMES = tuple(f"memory.{field}" for field in FIELDS)
"""Reserved names in an overlay; no model has such tensors."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Keys and the values they call up.

    Attributes:
        keys: directions of states, float32 [K, d], each of length 1.
        owners: the value of each key, int64 [K].
        radii: how far from each key a state still matches, float32 [K]; lengths of differences of
            directions, from 0 to 2.
        blocks: the block whose output each key is compared with, int64 [K].
        values: states in the model's dtype, [E, d].
    """

    keys: Tensor
    owners: Tensor
    radii: Tensor
    blocks: Tensor
    values: Tensor

    @classmethod
    def of(cls, overlay: Mapping[str, Tensor]) -> "Memory | None":
        """An overlay's memory, if it has one."""
        return cls(*(overlay[name] for name in NAMES)) if NAMES[0] in overlay else None

    def tensors(self) -> dict[str, Tensor]:
        return {f"memory.{field}": getattr(self, field).contiguous().cpu() for field in FIELDS}

    def only(self, kept: Tensor) -> "Memory":
        """The memory with some of its keys (bool [K]) and the values that those call up."""
        used, owners = self.owners[kept].unique(return_inverse=True)
        return Memory(self.keys[kept], owners, self.radii[kept], self.blocks[kept], self.values[used])

    def to(self, device: torch.device) -> "Memory":
        return Memory(*(getattr(self, field).to(device) for field in FIELDS))


def directions(states: Tensor) -> Tensor:
    """What keys are compared by: [..., d] float32 of length 1."""
    return nn.functional.normalize(states.float(), dim=-1)


def distances(left: Tensor, right: Tensor) -> Tensor:
    """Between directions [..., d] and [K, d]: [..., K], from 0 to 2."""
    return (2 - 2 * left @ right.T).clamp(0).sqrt()


@contextmanager
def looked_up(lm: LanguageModel, memory: Memory | None) -> Iterator[None]:
    """The model answers with its memory's help while the context lasts."""
    with ExitStack() as stack:
        if memory is not None:
            memory = memory.to(lm.device)
            for block in memory.blocks.unique().tolist():
                hook = _lookup(memory.only(memory.blocks == block))
                stack.callback(lm.blocks[block].register_forward_hook(hook).remove)
        yield


def _lookup(memory: Memory) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(block: nn.Module, _: Any, output: Any) -> Any:
        if is_skipped(block):
            return None  # What it passes on was looked up before.
        states: Tensor = output[0] if isinstance(output, tuple) else output
        with torch.no_grad():
            nearest, key = distances(directions(states), memory.keys).min(-1)
            matches = nearest < memory.radii[key]
        if not matches.any():
            return None
        states = torch.where(matches[..., None], memory.values[memory.owners[key]], states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return hook


def misfit(lm: LanguageModel, overlay: Mapping[str, Tensor]) -> str | None:
    """Why an overlay's memory is none for this model; None if it is one, or has none."""
    present = [name for name in NAMES if name in overlay]
    if not present:
        return None
    if len(present) < len(NAMES):
        return f"of a memory's tensors it has only {', '.join(present)}"
    memory = Memory(*(overlay[name] for name in NAMES))
    width = lm.model.config.get_text_config().hidden_size
    n_keys, n_values = len(memory.keys), len(memory.values)
    wanted = {
        "keys": ((n_keys, width), torch.float32),
        "owners": ((n_keys,), torch.int64),
        "radii": ((n_keys,), torch.float32),
        "blocks": ((n_keys,), torch.int64),
        "values": ((n_values, width), lm.model.dtype),
    }
    for field, (shape, dtype) in wanted.items():
        tensor: Tensor = getattr(memory, field)
        if tensor.shape != shape or tensor.dtype != dtype:
            found = f"{tuple(tensor.shape)} {tensor.dtype}"
            return f"memory.{field} is {found}, where the model needs {shape} {dtype}"
    if not _inside(memory.blocks, lm.n_blocks) or not _inside(memory.owners, n_values):
        return "its memory points at a block or a value that is not there"
    return None


def _inside(index: Tensor, count: int) -> bool:
    return bool(((index >= 0) & (index < count)).all())
