"""Step rules: how the weights move on a gradient, before they are projected."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from factedit.curvature import HalfPreconditioner
from factedit.low_curvature import LowCurvature


class StepRule(Protocol):
    """Moves `weights` (fp32, in place) on their `gradients` (fp32)."""

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """One step."""


class AdamSteps:
    """Adam (Kingma and Ba 2015): the optimiser of Zhu et al. 2020, section 4.1."""

    def __init__(self, learning_rate: float, betas: tuple[float, float] = (0.9, 0.95)) -> None:
        self._learning_rate, self._betas = learning_rate, betas
        self._optimizer: torch.optim.Adam | None = None

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(
                list(weights.values()), lr=self._learning_rate, betas=self._betas
            )
        for name, weight in weights.items():
            weight.grad = gradients[name]
        self._optimizer.step()


class ProjectedSteps:
    """Another rule's steps on gradients that were projected onto the directions of low curvature first.

    CrispEdit (Ikram et al., ICML 2026), by Adam as in the authors' own runs. What Adam makes of such
    gradients is not projected again.
    """

    def __init__(self, project: LowCurvature, rule: StepRule) -> None:
        self._project, self._rule = project, rule

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        self._rule(weights, {name: self._project(name, each) for name, each in gradients.items()})


class NaturalAdamSteps:
    """Adam in coordinates in which the curvature of unmodified facts is about the same everywhere.

    Adam alone moves each weight by the same length, whatever depends on it: it is quick to make facts
    hold, and spills over. Natural steps spare what is used, but need a length. Adam on V, where
    W = W0 + V H (HalfPreconditioner), has both: directions are damped by how much they are used, where
    CrispEdit closes some (ProjectedSteps). Steps grow for `WARM_UP` steps and shrink to a tenth at `total`.
    """

    WARM_UP = 5
    BETAS = (0.9, 0.95)

    def __init__(self, half: HalfPreconditioner, learning_rate: float, total: int) -> None:
        self._half, self._learning_rate, self._total = half, learning_rate, total
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._step = 0

    def __call__(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
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
