"""Which directions of a matrix the unmodified facts use: the covariance of what enters it.

A step that is small where the covariance is large moves the edited facts and leaves the others
alone. The covariance is the input factor of K-FAC (Martens and Grosse 2015, section 3); MEMIT
(Meng et al. 2022, section 4.2) protects what a matrix holds by the same one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factedit.forward import block_input, target_logits
from factedit.models import LanguageModel
from factedit.prompts import Batch, batches, next_token_example

BATCH = 64
Seen = Callable[[str, Tensor], None]
"""Called with a matrix's name and the rows that entered it, [N, d_in] in the model's dtype."""


class NoCurvature(Exception):
    """A tensor that is no plain matrix of a linear layer."""


@dataclass(frozen=True, slots=True)
class Covariance:
    """Of the vectors x that entered some matrices.

    Attributes:
        sums: by matrix, the sum of x x^T over all tokens, float32 [d_in, d_in].
        tokens: how many vectors there were.
    """

    sums: Mapping[str, Tensor]
    tokens: int

    def minus(self, other: "Covariance") -> "Covariance":
        """The covariance without the tokens of `other`, which were among these."""
        return Covariance(
            {name: total - other.sums[name] for name, total in self.sums.items()},
            self.tokens - other.tokens,
        )


def measure(
    lm: LanguageModel,
    names: Sequence[str],
    prompts: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Covariance:
    """What enters the matrices `names` while the model reads `prompts`, over all their tokens.

    Raises:
        NoCurvature: a name is not that of a linear layer's matrix.
    """
    sums = {name: torch.zeros(_width(lm, name), device=lm.device).diag() for name in names}

    def add(name: str, rows: Tensor) -> None:
        rows = rows.float()
        sums[name].addmm_(rows.T, rows)

    order = _read(lm, names, prompts, add, progress)
    return Covariance(sums, sum(length for _, length in order))


def inputs_of(lm: LanguageModel, names: Sequence[str], prompts: Sequence[str]) -> dict[str, list[Tensor]]:
    """What enters the matrices at every token of each prompt, in the model's dtype, [tokens, d_in] each."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    order = _read(lm, names, prompts, lambda name, rows: found[name].append(rows), None)
    lengths = [length for _, length in order]
    back = sorted(range(len(order)), key=lambda at: order[at])
    pieces = {name: torch.cat(rows).split(lengths) if rows else () for name, rows in found.items()}
    return {name: [each[at] for at in back] for name, each in pieces.items()}


@torch.no_grad()
def _read(
    lm: LanguageModel,
    names: Sequence[str],
    prompts: Sequence[str],
    seen: Seen,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[int, int]]:
    """(a prompt's place, its tokens) of all prompts, in the order they were read."""
    last = max((lm.block_of(name) or 0 for name in names), default=0)
    examples = [next_token_example(lm, prompt) for prompt in prompts]
    order: list[tuple[int, int]] = []
    with _inputs_seen(lm, names, seen) as read:
        for batch in batches(lm, examples, BATCH):
            lengths = [len(examples[i].ids) for i in batch.index.tolist()]
            read(batch, lengths)
            # No block above the last one, and no vocabulary, is needed.
            if last + 1 < lm.n_blocks:
                block_input(lm, batch, last + 1)
            else:
                target_logits(lm, batch)
            order += zip(batch.index.tolist(), lengths, strict=True)
            if progress is not None:
                progress(len(order), len(examples))
    return order


class HalfPreconditioner:
    """Multiplies by the inverse square root of the damped covariance, with gain 1 where nothing is used.

    Weights W = W0 + V H, for this H, move by V freely in unused directions and little in used ones:
    in the coordinates V the curvature is about the same everywhere. `damping` is in units of the
    covariance's mean eigenvalue: directions that carry less than this share of it count as unused. The
    products are taken in the model's own dtype, which is several times faster on some processors.
    """

    def __init__(self, lm: LanguageModel, covariance: Covariance, damping: float) -> None:
        self._transposed = {name: isinstance(linear_layer(lm, name), Conv1D) for name in covariance.sums}
        self._half = {n: _half(total, damping).to(lm.model.dtype) for n, total in covariance.sums.items()}

    def __call__(self, name: str, matrix: Tensor) -> Tensor:
        """`matrix`, in the shape of matrix `name`, times H on the side where vectors enter; float32."""
        half = self._half[name]
        narrow = matrix.to(half.dtype)
        return (half @ narrow if self._transposed[name] else narrow @ half).float()


def _half(total: Tensor, damping: float) -> Tensor:
    scale = total.diagonal().mean()
    if not scale > 0:
        return torch.eye(len(total), device=total.device)
    values, vectors = torch.linalg.eigh(total / scale)
    gains = (damping / (values.clamp_min(0) + damping)).sqrt()
    half: Tensor = (vectors * gains) @ vectors.T
    return half


def linear_layer(lm: LanguageModel, name: str) -> nn.Linear | Conv1D:
    """The layer whose matrix is the tensor `name`. Raises NoCurvature."""
    module = lm.model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, nn.Linear | Conv1D) or not name.endswith(".weight"):
        raise NoCurvature(f"{name} is no plain matrix of a linear layer.")
    return module


def _width(lm: LanguageModel, name: str) -> int:
    """How many numbers enter a matrix: the last axis of a Linear's, the first of a Conv1D's."""
    shape = lm.tensors[name].shape
    return shape[0] if isinstance(linear_layer(lm, name), Conv1D) else shape[1]


@contextmanager
def _inputs_seen(
    lm: LanguageModel, names: Iterable[str], seen: Seen
) -> Iterator[Callable[[Batch, Sequence[int]], None]]:
    """Tells of what enters the matrices; yields what to call with each batch before it is read."""
    real: list[Tensor] = []

    def read(batch: Batch, lengths: Sequence[int]) -> None:
        columns = torch.arange(batch.input_ids.shape[1], device=lm.device)
        real[:] = [columns < torch.tensor(lengths, device=lm.device)[:, None]]

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: seen(name, args[0][real[0]])

    handles = [linear_layer(lm, name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()
