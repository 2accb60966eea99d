"""A version's tensors laid over the root's, without copying either."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from factedit.models import LanguageModel

Overlay = Mapping[str, Tensor]


class OverlayMismatch(Exception):
    """An overlay that does not fit the model: a tensor it does not have, or of another shape or dtype."""


@contextmanager
def applied(lm: LanguageModel, overlay: Overlay) -> Iterator[None]:
    """Answer with `overlay`'s tensors in place of the root's while the context lasts.

    Only pointers move: the root's storage is never written, and an exception restores it too.

    Raises:
        OverlayMismatch: before anything has moved.
    """
    check_fits(lm, overlay)
    roots = {name: lm.tensors[name].data for name in overlay}
    try:
        for name, tensor in overlay.items():
            lm.tensors[name].data = tensor.to(lm.device)
        yield
    finally:
        for name, tensor in roots.items():
            lm.tensors[name].data = tensor


def check_fits(lm: LanguageModel, overlay: Overlay) -> None:
    for name, tensor in overlay.items():
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
