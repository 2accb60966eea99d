"""Directions along which a model's predictions hardly bend, and what is left of a gradient in them.

Source: CrispEdit (Ikram et al. 2026, "Low-Curvature Projections for Scalable Non-Destructive LLM Editing",
ICML; arXiv 2602.15823). In the eigenvectors of K-FAC's factors the curvature of each entry of a matrix is the
product of two eigenvalues. The largest, which together hold a share gamma of all curvature, are closed: a
gradient is rotated into the eigenvectors, loses its closed entries, and is rotated back, so that no projector
of (d_out d_in)^2 numbers is ever made.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from factedit.curvature import linear_layer
from factedit.kronecker import Factors
from factedit.models import LanguageModel


@dataclass(frozen=True, slots=True)
class Open:
    """Which directions of one matrix are left open.

    Attributes:
        leaving: eigenvectors of G, [d_out, d_out]; `entering`: of A, [d_in, d_in]; float32, in columns.
        entries: 1 for each pair of them that is open, else 0, float32 [d_out, d_in].
    """

    leaving: Tensor
    entering: Tensor
    entries: Tensor

    def project(self, gradient: Tensor) -> Tensor:
        """The part of `gradient`, float32 [d_out, d_in], that goes along open directions."""
        rotated = self.leaving.T @ gradient @ self.entering
        return self.leaving @ (rotated * self.entries) @ self.entering.T


def left_open(factors: Factors, share: float) -> Open:
    """All but the fewest directions that hold a `share`, between 0 and 1, of the sum of all curvatures.

    A direction as curved as the last of these is closed too. One without any curvature is always open.
    """
    entering, a = torch.linalg.eigh(factors.entering)
    leaving, g = torch.linalg.eigh(factors.leaving)
    curvatures = torch.outer(leaving.clamp_min(0), entering.clamp_min(0))
    largest = curvatures.flatten().sort(descending=True).values
    held = largest.double().cumsum(0)
    last = largest[int((held < share * held[-1]).sum())]
    return Open(g, a, ((curvatures < last) | (curvatures == 0)).float())


class LowCurvature:
    """Projects gradients, matrix by matrix, onto the directions that are left open."""

    def __init__(self, lm: LanguageModel, factors: Mapping[str, Factors], share: float) -> None:
        self._transposed = {name: isinstance(linear_layer(lm, name), Conv1D) for name in factors}
        self._open = {name: left_open(each, share) for name, each in factors.items()}

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """What is left of the gradient of matrix `name`, float32 and in its own shape."""
        if self._transposed[name]:
            return self._open[name].project(gradient.T).T
        return self._open[name].project(gradient)
