"""Projections into the ball around the root's weights (Zhu et al. 2020, section 3).

"Modifying Memories in Transformer Models" minimises the loss on the modified facts subject to
||theta - theta_0|| <= delta, by projecting after each step. The l_inf ball worked best there.
"""

import math
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


class FisherBall:
    """The chosen weights move together no further than `radius`, each weighed by its Fisher information.

    The set of elastic weight consolidation (Kirkpatrick et al. 2017, section 2), as a bound rather than
    a penalty: sum_i F_i (w_i - w0_i)^2 <= radius^2.
    """

    def __init__(self, radius: float, fisher: Weights) -> None:
        self.radius, self.fisher = radius, fisher

    def project(self, weights: Weights, roots: Weights) -> None:
        project_fisher(weights, roots, self.fisher, self.radius)

    def contains(self, weights: Weights, roots: Weights) -> bool:
        return distance_fisher(weights, roots, self.fisher) <= self.radius * (1 + 1e-5)


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


def project_fisher(weights: Weights, roots: Weights, fisher: Weights, radius: float) -> None:
    """Move `weights` in place to the nearest point, in Euclidean distance, of the Fisher ball.

    By Lagrange: w_i = w0_i + d_i / (1 + lambda F_i), with the one lambda that ends on the surface.
    Where F is 0 a weight is free.

    Args:
        fisher: F by name, float32 and not negative, in the weights' shapes.
    """
    if distance_fisher(weights, roots, fisher) <= radius:
        return
    multiplier = _multiplier(weights, roots, fisher, radius)
    for name, weight in weights.items():
        moved = weight.double() - roots[name].double()
        weight.copy_(roots[name].double() + moved / (1 + multiplier * fisher[name].double()))


def _multiplier(weights: Weights, roots: Weights, fisher: Weights, radius: float) -> float:
    """The lambda of `project_fisher`, to a relative 1e-7 of the radius's square; the weights are outside.

    Bisection, by Newton's step on 1 / distance - 1 / radius wherever that stays in the bracket: it needs
    a quarter of the passes over the weights (More and Sorensen 1983, section 3).
    """
    moved = torch.cat([(w.double() - roots[n].double()).flatten() for n, w in weights.items()])
    weight = torch.cat([fisher[n].double().flatten() for n in weights])
    squares, surface = weight * moved.square(), radius**2
    # F / (1 + lambda F)^2 is at most 1 / (4 lambda), and at least F / (1 + lambda max F)^2.
    high = float(moved.square().sum()) / (4 * surface)
    low = max(0.0, (math.sqrt(float(squares.sum())) / radius - 1) / float(weight.max()))
    found = low
    for _ in range(200):
        damped = 1 + found * weight
        left = squares / damped.square()
        reached = float(left.sum())
        if abs(reached - surface) <= 1e-7 * surface:
            return found
        low, high = (found, high) if reached > surface else (low, found)
        slope = float((left * weight / damped).sum())
        newton = found + (math.sqrt(reached) / radius - 1) * reached / slope if slope > 0 else high
        found = newton if low < newton < high else (low + high) / 2
    return high


def distance_fisher(weights: Weights, roots: Weights, fisher: Weights) -> float:
    """The square root of sum_i F_i (w_i - w0_i)^2."""
    moved = ((n, w.double() - roots[n].double()) for n, w in weights.items())
    return float(sum(float((fisher[n].double() * m.square()).sum()) for n, m in moved) ** 0.5)


def build_constraint(norm: Norm, radius: float, fisher: Weights | None = None) -> Constraint:
    """The set of that norm around the root; for `none`, the radius means nothing.

    Args:
        fisher: for `fisher` only (factedit.fisher).
    """
    if norm == "fisher":
        if fisher is None:
            raise ValueError("The Fisher ball needs the Fisher information.")
        return FisherBall(radius, fisher)
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
