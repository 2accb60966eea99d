"""Neurons that know their subject already: what each of them says is sought in the model that it is in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factedit.facts import Edit
from factedit.gated_mlp import GatedMlp
from factedit.methods.value_objective import Changed
from factedit.models import LanguageModel


@dataclass(frozen=True, slots=True)
class Neuron:
    """One subject's.

    Attributes:
        edits: all in force of its subject.
        block, place: which of the block's neurons it is.
        length: the length of its column of the MLP-out matrix that moves the subject's hidden vector, where
            the neuron fires as it usually does, by the vector's own length.
    """

    edits: list[Edit]
    block: int
    mlp: GatedMlp
    place: int
    length: float


def of_neurons(lm: LanguageModel, neurons: Sequence[Neuron]) -> Changed:
    """The edits' neurons say something else: their columns of the MLP-out matrices are what is changed.

    Each fires as the model makes it fire, at its subject and wherever else. The model's own columns must be
    zero meanwhile.
    """
    sites: dict[str, list[int]] = {}
    for edit, neuron in enumerate(neurons):
        sites.setdefault(neuron.mlp.down.removesuffix(".weight"), []).append(edit)

    def adding(edits: list[int], changes: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        places = [neurons[edit].place for edit in edits]

        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            moved: Tensor = output + args[0][..., places] @ changes[edits].to(output.dtype)
            return moved

        return add

    @contextmanager
    def changed(_: list[int], changes: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            for name, edits in sites.items():
                module = lm.model.get_submodule(name)
                stack.callback(module.register_forward_hook(adding(edits, changes)).remove)
            yield

    return changed


def columns(neurons: Sequence[Neuron], exact: Mapping[str, Tensor]) -> Tensor:
    """What the neurons say now, [n, d] float32, from the matrices as they are exactly."""
    return torch.stack([exact[neuron.mlp.down][:, neuron.place] for neuron in neurons])


def say(neurons: Sequence[Neuron], changes: Tensor, exact: Mapping[str, Tensor]) -> None:
    """Write what the neurons are to say into these matrices."""
    for neuron, column in zip(neurons, changes, strict=True):
        exact[neuron.mlp.down][:, neuron.place] = column
