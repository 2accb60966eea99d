"""Step rules: how the weights move on a gradient, before they are projected."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from factedit.curvature import Preconditioner


class StepRule(Protocol):
    """Moves `weights` (fp32, in place) on their `gradients` (fp32), given the loss they are of."""

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], loss: float) -> None:
        """One step."""


class AdamSteps:
    """Adam (Kingma and Ba 2015): the optimiser of Zhu et al. 2020, section 4.1."""

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
    learning rate to be tuned for a model or a batch.
    """

    def __init__(self, preconditioner: Preconditioner, share: float = 0.7) -> None:
        self._preconditioner, self._share = preconditioner, share

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], loss: float) -> None:
        directions = {name: self._preconditioner(name, g) for name, g in gradients.items()}
        slope = sum(float((gradients[name] * d).sum()) for name, d in directions.items())
        if slope <= 0:  # no gradient is left
            return
        for name, weight in weights.items():
            weight -= (self._share * loss / slope) * directions[name]
