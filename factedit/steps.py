"""Step rules: how the weights move on a gradient, before they are projected."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from factedit.curvature import HalfPreconditioner, Preconditioner


class StepRule(Protocol):
    """Moves `weights` (fp32, in place) on their `gradients` (fp32), given the loss they are of.

    Attributes:
        separate: whether the facts' loss and the anchors' divergence each take a step of their own,
            one after the other; else one step is taken on their weighted sum.
    """

    separate: bool

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], loss: float) -> None:
        """One step."""


class AdamSteps:
    """Adam (Kingma and Ba 2015): the optimiser of Zhu et al. 2020, section 4.1."""

    separate = False

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._optimizer: torch.optim.Adam | None = None

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], loss: float) -> None:
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(
                list(weights.values()), lr=self._learning_rate, betas=(0.9, 0.95)
            )
        for name, weight in weights.items():
            weight.grad = gradients[name]
        self._optimizer.step()


class NaturalSteps:
    """Preconditioned descent, each step as long as Polyak's rule says (Polyak 1987, section 5.3).

    Were the loss linear in the weights, a step would take `share` of it away; so there is no
    learning rate to be tuned for a model or a batch. The facts and the anchors take turns: a sum
    would need a weight between them, and the rule's length would be wrong for both.
    """

    separate = True

    def __init__(self, preconditioner: Preconditioner, share: float = 0.7) -> None:
        self._preconditioner, self._share = preconditioner, share

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], loss: float) -> None:
        directions = {name: self._preconditioner(name, g) for name, g in gradients.items()}
        slope = sum(float((gradients[name] * d).sum()) for name, d in directions.items())
        if slope <= 0:  # no gradient is left
            return
        for name, weight in weights.items():
            weight -= (self._share * loss / slope) * directions[name]


class NaturalAdamSteps:
    """Adam in coordinates in which the curvature of unmodified facts is about the same everywhere.

    Adam alone moves each weight by the same length, whatever depends on it: it is quick to make facts
    hold, and spills over. Natural steps spare what is used, but need a length. Adam on V, where
    W = W0 + V H (HalfPreconditioner), has both: the steps of CrispEdit's kind (ICML 2026), with a
    length of their own for each coordinate. Steps grow for `WARM_UP` steps and shrink to a tenth at `total`.
    """

    separate = False
    WARM_UP = 5
    BETAS = (0.9, 0.95)

    def __init__(self, half: HalfPreconditioner, learning_rate: float, total: int) -> None:
        self._half, self._learning_rate, self._total = half, learning_rate, total
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._step = 0

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], loss: float) -> None:
        self._step += 1
        pace = min(1.0, self._step / self.WARM_UP) * max(0.1, 1 - self._step / self._total)
        first, second = self.BETAS
        length = self._learning_rate * pace * (1 - second**self._step) ** 0.5 / (1 - first**self._step)
        for name, weight in weights.items():
            gradient = self._half(name, gradients[name])
            mean, square = self._moments.setdefault(
                name, (torch.zeros_like(gradient), torch.zeros_like(gradient))
            )
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            weight -= length * self._half(name, mean / square.sqrt().add_(1e-8))
