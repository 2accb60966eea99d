"""How a model's predictions bend with a matrix: the Gauss-Newton Hessian, by K-FAC's two factors.

Along a change D of a matrix, the divergence from what the model says now grows as D's curvature: with A, the
covariance of what enters the matrix, and G, that of the loss's gradients at what leaves it, K-FAC takes it to
be tr(D^T G D A) / 2 (Martens and Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate
Curvature", section 3). Labels are sampled from the model, as there (section 2), for which G is the
Gauss-Newton Hessian's and not the empirical Fisher information's, in whatever text it is measured.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from factedit.curvature import linear_layer
from factedit.forward import block_input, target_logits
from factedit.models import LanguageModel
from factedit.prompts import Example, collate, next_token_example

AT_ONCE = 1024
"""Tokens in a pass, unless a single text has more: each takes as many numbers as the vocabulary has words."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Of one matrix, averaged over all tokens that were read; float32, symmetric.

    Attributes:
        entering: A = E[x x^T] of the vectors that enter it, [d_in, d_in].
        leaving: G = E[g g^T] of the gradients of the labels' loss at what leaves it, [d_out, d_out].
    """

    entering: Tensor
    leaving: Tensor


def kronecker_factors(
    lm: LanguageModel, names: Sequence[str], texts: Sequence[str], seed: int, first_block: int = 0
) -> dict[str, Factors]:
    """The factors of the matrices `names`, on every token of `texts`; a masked model's at its mask alone.

    Args:
        first_block: no matrix of `names` lies below it.

    Raises:
        NoCurvature: a name is not that of a linear layer's matrix.
        ValueError: no text.
    """
    if not texts:
        raise ValueError("The curvature is measured on texts; there are none.")
    examples = [_everywhere(lm, text) for text in texts]
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Factors] = {}
    with _watched(lm, names) as seen:
        for index in _pieces(examples):
            batch = collate(lm, examples, index)
            prefix = block_input(lm, batch, first_block) if first_block else None
            seen.clear()
            logits = target_logits(lm, batch, prefix=prefix, first_block=first_block).float()
            labels = sampled(logits.detach(), generator)
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [seen[name][1] for name in names])
            lengths = torch.tensor([len(examples[i].ids) for i in index], device=lm.device)
            real = torch.arange(batch.input_ids.shape[1], device=lm.device) < lengths[:, None]
            for name, gradient in zip(names, gradients, strict=True):
                x, g = seen[name][0][real].float(), gradient[real].float()
                found = sums.setdefault(name, _nothing(x.shape[1], g.shape[1], lm.device))
                found.entering.addmm_(x.T, x)
                found.leaving.addmm_(g.T, g)
    tokens = sum(len(example.ids) for example in examples)
    return {name: Factors(each.entering / tokens, each.leaving / tokens) for name, each in sums.items()}


@torch.no_grad()
def sampled(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A label for each row of `logits` [N, V], drawn from its own distribution, int64 [N].

    By a generator of the CPU's: the same draws on every kind of device.
    """
    below = logits.softmax(-1).cumsum(-1)
    drawn = torch.rand((len(logits), 1), generator=generator).to(logits.device)
    return (
        torch.searchsorted(below, drawn * below[:, -1:], right=True).squeeze(1).clamp_max(logits.shape[1] - 1)
    )


def _everywhere(lm: LanguageModel, text: str) -> Example:
    """A text that is predicted after each of its tokens."""
    example = next_token_example(lm, text)
    if lm.task == "masked":
        return example
    places = tuple(range(len(example.ids)))
    return replace(example, positions=places, targets=tuple(0 for _ in places))


def _pieces(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Places of examples of like length, few enough for one pass."""
    piece: list[int] = []
    for place in sorted(range(len(examples)), key=lambda i: len(examples[i].ids)):
        if piece and (len(piece) + 1) * len(examples[place].ids) > AT_ONCE:
            yield piece
            piece = []
        piece.append(place)
    yield piece


def _nothing(entering: int, leaving: int, device: torch.device) -> Factors:
    return Factors(*(torch.zeros((width, width), device=device) for width in (entering, leaving)))


@contextmanager
def _watched(lm: LanguageModel, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What enters and leaves each matrix in the last pass; gradients can be had of what leaves."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def watch(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            # No weight asks for gradients, so that the lowest watched output is a leaf.
            if not output.requires_grad:
                output.requires_grad_(True)
            seen[name] = args[0].detach(), output

        return watch

    handles = [linear_layer(lm, name).register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
