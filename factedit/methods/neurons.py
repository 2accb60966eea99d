"""Neurons that know their subject already: what each of them says is sought in the model that it joins."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factedit.added_neurons import Neurons, fire, heard, mlp_of
from factedit.facts import Edit
from factedit.methods.value_objective import Changed
from factedit.models import LanguageModel
from factedit.overlay import Overlay

KNOWN_BY = ("gate", "words", "thresholds")


@dataclass(frozen=True, slots=True)
class Neuron:
    """One subject's.

    Attributes:
        edits: all in force of its subject.
        gate, words: by which it fires, in the model's dtype, [d] each; thresholds: likewise, [2].
        length: how long what it says must be to move the subject's hidden vector by the vector's own length,
            where the neuron fires as it usually does.
        cues: the places of the version's neurons that this one waits for.
        together: the place of the one that it fires only together with, at the same token; -1: none.
    """

    edits: list[Edit]
    block: int
    gate: Tensor
    words: Tensor
    thresholds: Tensor
    length: float
    cues: tuple[int, ...] = ()
    together: int = -1


def of_neurons(lm: LanguageModel, neurons: Sequence[Neuron]) -> Changed:
    """The model with these neurons, an edit's each: what they say is what is changed."""
    sites: dict[int, list[int]] = {}
    for edit, neuron in enumerate(neurons):
        sites.setdefault(neuron.block, []).append(edit)

    def adding(edits: list[int], changes: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        known_by = [torch.stack([getattr(neurons[e], part) for e in edits]) for part in KNOWN_BY]
        mine = [neurons[e] for e in edits]
        waits, together = _waits(mine, changes.device), _together(mine, changes.device)

        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            fires = fire(args[0], *known_by)
            cues = lm.cues
            so_far, now = (None, None) if cues is None else (cues.so_far(), cues.now())
            fires = fires * heard(so_far, now, waits, together, fires)
            moved: Tensor = output + fires @ changes[edits].to(output.dtype)
            return moved

        return add

    @contextmanager
    def changed(_: list[int], changes: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            for block, edits in sites.items():
                hook = adding(edits, changes)
                stack.callback(mlp_of(lm, block).register_forward_hook(hook).remove)
            yield

    return changed


def saying_so(neurons: Sequence[Neuron], said: Tensor) -> Neurons:
    """The neurons as a version keeps them; what each says, [n, d] float32."""
    blocks = torch.tensor([neuron.block for neuron in neurons], dtype=torch.int64, device=said.device)
    gate, words, thresholds = (torch.stack([getattr(each, part) for each in neurons]) for part in KNOWN_BY)
    waits, together = _waits(neurons, said.device), _together(neurons, said.device)
    return Neurons(blocks, gate, words, thresholds, said.to(gate.dtype), waits, together)


def with_neurons(parent: Overlay, neurons: Neurons | None) -> dict[str, Tensor]:
    """The parent with these in its neurons' place."""
    return {**parent, **({} if neurons is None else neurons.tensors())}


def silent(
    gate: Tensor, blocks: Sequence[int], thresholds: Sequence[float], cues: Sequence[Sequence[int]] = ()
) -> Neurons:
    """Neurons that fire by these rows, [n, d] in the model's dtype, in whatever words, and say nothing.

    cues: the places of the neurons that each waits for; none waits for any, if not given.
    """
    nothing, alone = torch.zeros_like(gate), torch.full((len(gate),), -1, device=gate.device)
    above = torch.tensor([[least, -1.0] for least in thresholds], dtype=gate.dtype, device=gate.device)
    waits = _padded(cues or [()] * len(gate), gate.device)
    return Neurons(alone.new_tensor(blocks), gate, nothing, above.reshape(-1, 2), nothing, waits, alone)


def _waits(neurons: Sequence[Neuron], device: torch.device) -> Tensor:
    return _padded([neuron.cues for neuron in neurons], device)


def _padded(places: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """The places of each, padded with -1, int64 [n, m]."""
    most = max([1, *map(len, places)])
    rows = [[*each, *[-1] * (most - len(each))] for each in places]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(places), most)


def _together(neurons: Sequence[Neuron], device: torch.device) -> Tensor:
    return torch.tensor([neuron.together for neuron in neurons], dtype=torch.int64, device=device)
