"""Projections into the ball around the root's weights (Zhu et al. 2020, section 3).

"Modifying Memories in Transformer Models" minimises the loss on the modified facts subject to
||theta - theta_0|| <= delta, by projecting after each step. The l_inf ball worked best there.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from factedit.specs import Norm

Weights = Mapping[str, Tensor]


class Constraint(Protocol):
    """A set around the root's weights that contains them."""

    def project(self, weights: Weights, roots: Weights) -> None:
        """Move `weights` (fp32, in place) to the nearest point of the set around `roots` (fp32)."""

    def contains(self, weights: Weights, roots: Weights) -> bool:
        """Whether `weights` lie in the set, to within float32 rounding."""


class Unconstrained:
    """No bound: plain fine-tuning."""

    def project(self, weights: Weights, roots: Weights) -> None:
        """Every point is in the set."""

    def contains(self, weights: Weights, roots: Weights) -> bool:
        return True


class LInfBall:
    """No single weight moves further than `radius`."""

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def project(self, weights: Weights, roots: Weights) -> None:
        for name, weight in weights.items():
            project_linf(weight, roots[name], self.radius)

    def contains(self, weights: Weights, roots: Weights) -> bool:
        slack = self.radius * 1e-6
        moved = ((w.float() - roots[n].float()).abs() for n, w in weights.items())
        return all(bool((distance <= self.radius + slack).all()) for distance in moved)


class L2Ball:
    """The chosen weights together move no further than `radius` in Euclidean distance."""

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def project(self, weights: Weights, roots: Weights) -> None:
        project_l2(weights, roots, self.radius)

    def contains(self, weights: Weights, roots: Weights) -> bool:
        return distance_l2(weights, roots) <= self.radius * (1 + 1e-5)


def project_linf(weight: Tensor, root: Tensor, radius: float) -> None:
    """Clamp `weight` in place to within `radius` of `root`, weight by weight."""
    weight.clamp_(root - radius, root + radius)


def project_l2(weights: Weights, roots: Weights, radius: float) -> None:
    """Shrink `weights` in place towards `roots` until their joint distance is at most `radius`."""
    distance = distance_l2(weights, roots)
    if distance > radius:
        for name, weight in weights.items():
            weight.copy_(roots[name] + (weight - roots[name]) * (radius / distance))


def distance_l2(weights: Weights, roots: Weights) -> float:
    total = sum(float((w.double() - roots[n].double()).square().sum()) for n, w in weights.items())
    return float(total**0.5)


def build_constraint(norm: Norm, radius: float) -> Constraint:
    """The set of that norm around the root; for `none`, the radius means nothing."""
    if norm == "l_inf":
        return LInfBall(radius)
    if norm == "l_2":
        return L2Ball(radius)
    return Unconstrained()


def round_inside(weights: Weights, roots: Weights, constraint: Constraint) -> dict[str, Tensor]:
    """`weights` (fp32) in the roots' dtype, still in the set.

    Rounding to bfloat16 can step out of the ball by half a unit in the last place. Where it does,
    the weight is rounded towards the root instead, so that what is stored keeps the promise.

    Args:
        weights, roots: by name, same shapes; `roots` in the dtype that is stored.
    """
    rounded = {name: weight.to(roots[name].dtype) for name, weight in weights.items()}
    if constraint.contains(rounded, roots):
        return rounded
    if isinstance(constraint, LInfBall):
        return {n: _towards(w, roots[n], constraint.radius) for n, w in rounded.items()}
    shrink = 1.0
    while not constraint.contains(rounded, roots):
        shrink *= 0.999
        rounded = {n: _shrunk(w, roots[n], shrink) for n, w in weights.items()}
    return rounded


def _shrunk(weight: Tensor, root: Tensor, factor: float) -> Tensor:
    return (root.float() + (weight - root.float()) * factor).to(root.dtype)


def _towards(rounded: Tensor, root: Tensor, radius: float) -> Tensor:
    outside = (rounded.float() - root.float()).abs() > radius
    return torch.where(outside, torch.nextafter(rounded, root), rounded)
