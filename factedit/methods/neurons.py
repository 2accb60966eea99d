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
    """

    edits: list[Edit]
    block: int
    gate: Tensor
    words: Tensor
    thresholds: Tensor
    length: float
    cues: tuple[int, ...] = ()


def of_neurons(lm: LanguageModel, neurons: Sequence[Neuron]) -> Changed:
    """The model with these neurons, an edit's each: what they say is what is changed."""
    sites: dict[int, list[int]] = {}
    for edit, neuron in enumerate(neurons):
        sites.setdefault(neuron.block, []).append(edit)

    def adding(edits: list[int], changes: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        known_by = [torch.stack([getattr(neurons[e], part) for e in edits]) for part in KNOWN_BY]
        waits = _waits([neurons[e] for e in edits], changes.device)

        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            fires = fire(args[0], *known_by)
            fires = fires * heard(None if lm.cues is None else lm.cues.so_far(), waits, fires)
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
    return Neurons(blocks, gate, words, thresholds, said.to(gate.dtype), _waits(neurons, said.device))


def _waits(neurons: Sequence[Neuron], device: torch.device) -> Tensor:
    """The cues of each, padded with -1, int64 [n, m]."""
    most = max(1, *(len(neuron.cues) for neuron in neurons))
    rows = [[*neuron.cues, *[-1] * (most - len(neuron.cues))] for neuron in neurons]
    return torch.tensor(rows, dtype=torch.int64, device=device)
