"""A version's tensors laid over the root's, without copying either.

What an overlay holds beside weights, under reserved names, is at work for as long: neurons that are added
(factedit.added_neurons), a memory (factedit.memory) and notes (factedit.context).
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from factedit import added_neurons, memory
from factedit.added_neurons import Neurons, firing
from factedit.context import NAME as NOTES
from factedit.context import Notes, noted
from factedit.memory import Memory, looked_up
from factedit.models import LanguageModel

Overlay = Mapping[str, Tensor]
RESERVED = frozenset({*added_neurons.NAMES, *memory.NAMES, NOTES})
"""Names in an overlay that are no weights of the root's."""


class OverlayMismatch(Exception):
    """An overlay that does not fit the model: a tensor it does not have, or of another shape or dtype."""


@contextmanager
def applied(lm: LanguageModel, overlay: Overlay) -> Iterator[None]:
    """Answer with `overlay`'s tensors in place of the root's while the context lasts, and what it adds.

    Only pointers move: the root's storage is never written, and an exception restores it too.

    Raises:
        OverlayMismatch: before anything has moved.
    """
    check_fits(lm, overlay)
    roots = {name: lm.tensors[name].data for name in overlay if name not in RESERVED}
    try:
        for name in roots:
            lm.tensors[name].data = overlay[name].to(lm.device)
        neurons, remembered, notes = Neurons.of(overlay), Memory.of(overlay), Notes.of(overlay)
        with firing(lm, neurons), looked_up(lm, remembered), noted(lm, notes):
            yield
    finally:
        for name, tensor in roots.items():
            lm.tensors[name].data = tensor


def check_fits(lm: LanguageModel, overlay: Overlay) -> None:
    try:
        Notes.of(overlay)
    except ValueError as error:
        raise OverlayMismatch(str(error)) from error
    for problem in (added_neurons.misfit(lm, overlay), memory.misfit(lm, overlay)):
        if problem is not None:
            raise OverlayMismatch(problem)
    for name, tensor in overlay.items():
        if name in RESERVED:
            continue
        own = lm.tensors.get(name)
        if own is None:
            raise OverlayMismatch(f"the model has no tensor {name}")
        if own.shape != tensor.shape or own.dtype != tensor.dtype:
            raise OverlayMismatch(
                f"{name} is {tuple(own.shape)} {own.dtype} in the model, "
                f"{tuple(tensor.shape)} {tensor.dtype} in the overlay"
            )


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes (hex)."""
    raw = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def tensor_digests(lm: LanguageModel) -> dict[str, str]:
    """SHA-256 of every tensor that the model now holds, by name."""
    return {name: tensor_digest(parameter.data) for name, parameter in lm.tensors.items()}


def root_digest(lm: LanguageModel) -> str:
    """One SHA-256 over all the tensors' names and digests."""
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(tensor_digests(lm).items()))
    return hashlib.sha256(lines.encode()).hexdigest()
