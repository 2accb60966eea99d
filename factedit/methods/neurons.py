"""Neurons that know their subject already: what each of them says is sought in the model that it is in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factedit.facts import Edit
from factedit.gated_mlp import GatedMlp
from factedit.methods.keys import Context
from factedit.methods.value_objective import Objective
from factedit.training import ExampleSet


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


class OfNeurons(Objective):
    """The edits' neurons say something else: their columns of the MLP-out matrices are what is changed.

    Each fires as the model makes it fire, at its subject and wherever else. The model's own columns must be
    zero meanwhile.
    """

    def __init__(
        self,
        examples: ExampleSet,
        facts: Sequence[Context],
        sayings: Sequence[Context],
        at_once: int | None,
        neurons: Sequence[Neuron],
    ) -> None:
        self._sites: dict[str, list[int]] = {}
        for edit, neuron in enumerate(neurons):
            self._sites.setdefault(neuron.mlp.down, []).append(edit)
        self._neurons = neurons
        super().__init__(examples, facts, sayings, at_once)

    @contextmanager
    def changed(self, index: list[int], changes: Tensor) -> Iterator[None]:
        model: nn.Module = self._examples.lm.model
        with ExitStack() as stack:
            for name, edits in self._sites.items():
                module = model.get_submodule(name.removesuffix(".weight"))
                handle = module.register_forward_hook(self._saying(edits, changes))
                stack.callback(handle.remove)
            yield

    def _saying(self, edits: list[int], changes: Tensor) -> Any:
        places = torch.tensor([self._neurons[edit].place for edit in edits], device=changes.device)

        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            moved: Tensor = output + args[0][..., places] @ changes[edits].to(output.dtype)
            return moved

        return add


def columns(neurons: Sequence[Neuron], exact: Mapping[str, Tensor]) -> Tensor:
    """What the neurons say now, [n, d] float32, from the matrices as they are exactly."""
    return torch.stack([exact[neuron.mlp.down][:, neuron.place] for neuron in neurons])


def say(neurons: Sequence[Neuron], changes: Tensor, exact: Mapping[str, Tensor]) -> None:
    """Write what the neurons are to say into these matrices."""
    for neuron, column in zip(neurons, changes, strict=True):
        exact[neuron.mlp.down][:, neuron.place] = column
