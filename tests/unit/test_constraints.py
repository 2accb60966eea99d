"""The balls around the root's weights: what projecting and rounding promise."""

import math
from collections.abc import Mapping

import pytest
import scipy.optimize
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from factedit.constraints import (
    FisherBall,
    L2Ball,
    LInfBall,
    Unconstrained,
    build_constraint,
    distance_fisher,
    distance_l2,
    project_fisher,
    project_l2,
    project_linf,
    round_inside,
)

Point = dict[str, Tensor]

COORDINATE = st.floats(-4.0, 4.0, width=32)
RADIUS = st.floats(1e-4, 3.0)
ROUNDING = 1e-6
"""Two units in the last place of a float32 of size 4 or less."""


@st.composite
def points(draw: st.DrawFn, count: int) -> list[Point]:
    """Some points of one space: two tensors each, of drawn sizes, float32."""
    sizes = {"a": draw(st.integers(1, 5)), "b": draw(st.integers(1, 3))}

    def values(size: int) -> Tensor:
        return torch.tensor(draw(st.lists(COORDINATE, min_size=size, max_size=size)))

    return [{name: values(size) for name, size in sizes.items()} for _ in range(count)]


@st.composite
def stored_roots(draw: st.DrawFn) -> tuple[Point, Point]:
    """Roots in bfloat16 and float32 weights not far from them."""
    root, step = draw(points(2))
    scale = draw(st.floats(1e-4, 1.0))
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in root.items()}
    return stored, {name: stored[name].float() + step[name] * scale for name in stored}


def copied(point: Mapping[str, Tensor]) -> Point:
    return {name: tensor.clone() for name, tensor in point.items()}


def largest_move(weights: Mapping[str, Tensor], roots: Mapping[str, Tensor]) -> float:
    return max(float((w.double() - roots[n].double()).abs().max()) for n, w in weights.items())


def joined(point: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double() for tensor in point.values()])


@given(points(2), RADIUS)
def test_the_l_inf_projection_is_inside_the_ball(two: list[Point], radius: float) -> None:
    root, weights = two
    LInfBall(radius).project(weights, root)
    assert largest_move(weights, root) <= radius + ROUNDING


@given(points(2), RADIUS)
def test_the_l_inf_projection_clamps_each_weight_by_itself(two: list[Point], radius: float) -> None:
    root, weights = two
    closed_form = {
        name: [
            min(max(w, r - radius), r + radius) for w, r in zip(t.tolist(), root[name].tolist(), strict=True)
        ]
        for name, t in weights.items()
    }
    LInfBall(radius).project(weights, root)
    for name, tensor in weights.items():
        assert tensor.tolist() == pytest.approx(closed_form[name], abs=ROUNDING)


@given(points(2), RADIUS)
def test_the_l_inf_projection_a_second_time_moves_nothing(two: list[Point], radius: float) -> None:
    root, weights = two
    project_linf(weights["a"], root["a"], radius)
    once = weights["a"].clone()
    project_linf(weights["a"], root["a"], radius)
    assert torch.equal(weights["a"], once)


@given(points(2), RADIUS)
def test_the_l_inf_projection_leaves_points_inside_untouched(two: list[Point], radius: float) -> None:
    root, weights = two
    inside = {
        n: torch.where((w.double() - root[n].double()).abs() < radius - ROUNDING, w, root[n])
        for n, w in weights.items()
    }
    before = copied(inside)
    LInfBall(radius).project(inside, root)
    assert all(torch.equal(inside[name], before[name]) for name in inside)


@given(points(2), RADIUS)
def test_the_l_2_projection_is_inside_the_ball(two: list[Point], radius: float) -> None:
    root, weights = two
    L2Ball(radius).project(weights, root)
    assert distance_l2(weights, root) <= radius + 3 * ROUNDING


@given(points(2), RADIUS)
def test_the_l_2_projection_shrinks_all_tensors_by_one_factor(two: list[Point], radius: float) -> None:
    root, weights = two
    moved, centre = joined(weights) - joined(root), joined(root)
    factor = min(1.0, radius / max(float(moved.norm()), 1e-300))
    L2Ball(radius).project(weights, root)
    assert joined(weights).tolist() == pytest.approx((centre + factor * moved).tolist(), abs=3 * ROUNDING)


@given(points(2), RADIUS)
def test_the_l_2_projection_a_second_time_moves_no_more_than_rounding(
    two: list[Point], radius: float
) -> None:
    root, weights = two
    project_l2(weights, root, radius)
    once = copied(weights)
    project_l2(weights, root, radius)
    assert largest_move(weights, once) <= 2 * ROUNDING


@given(points(2), st.floats(1.0, 2.0))
def test_the_l_2_projection_leaves_points_inside_untouched(two: list[Point], slack: float) -> None:
    root, weights = two
    before = copied(weights)
    L2Ball(distance_l2(weights, root) * slack + 1e-9).project(weights, root)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@given(points(3), RADIUS, st.sampled_from(["l_inf", "l_2"]))
def test_no_other_point_of_the_ball_is_nearer_than_the_projection(
    three: list[Point], radius: float, norm: str
) -> None:
    root, weights, other = three
    ball = LInfBall(radius) if norm == "l_inf" else L2Ball(radius)
    start = copied(weights)
    ball.project(weights, root)
    ball.project(other, root)
    assert distance_l2(start, weights) <= distance_l2(start, other) + 10 * ROUNDING


# The Fisher ball

IMPORTANCE = st.one_of(st.just(0.0), st.floats(2**-20, 100.0, width=32))


@st.composite
def weighed(draw: st.DrawFn, count: int) -> tuple[list[Point], Point]:
    """Some points of one space, and a Fisher information of it, some of it 0."""
    found = draw(points(count))
    fisher = {
        name: torch.tensor(draw(st.lists(IMPORTANCE, min_size=len(t), max_size=len(t))))
        for name, t in found[0].items()
    }
    return found, fisher


def fisher_rounding(fisher: Point) -> float:
    """What rounding the weights to float32 may add to a distance in the Fisher norm."""
    return float(8 * ROUNDING * max(1.0, float(joined(fisher).max()) ** 0.5))


@given(weighed(2), RADIUS)
def test_the_fisher_projection_is_inside_the_ball(given_: tuple[list[Point], Point], radius: float) -> None:
    (root, weights), fisher = given_
    FisherBall(radius, fisher).project(weights, root)
    assert distance_fisher(weights, root, fisher) <= radius + fisher_rounding(fisher)


@given(weighed(2), RADIUS)
def test_the_fisher_projection_of_what_is_outside_ends_on_the_surface(
    given_: tuple[list[Point], Point], radius: float
) -> None:
    (root, weights), fisher = given_
    assume(distance_fisher(weights, root, fisher) > radius)
    project_fisher(weights, root, fisher, radius)
    assert distance_fisher(weights, root, fisher) == pytest.approx(
        radius, rel=1e-6, abs=fisher_rounding(fisher)
    )


@given(weighed(2), RADIUS)
def test_the_fisher_projection_a_second_time_moves_no_more_than_rounding(
    given_: tuple[list[Point], Point], radius: float
) -> None:
    (root, weights), fisher = given_
    project_fisher(weights, root, fisher, radius)
    once = copied(weights)
    project_fisher(weights, root, fisher, radius)
    # A weight of little importance moves far for a small change of the distance: measured in that norm.
    assert distance_fisher(weights, once, fisher) <= 2 * fisher_rounding(fisher)


@given(weighed(2), st.floats(1.0, 2.0))
def test_the_fisher_projection_leaves_points_inside_untouched(
    given_: tuple[list[Point], Point], slack: float
) -> None:
    (root, weights), fisher = given_
    before = copied(weights)
    FisherBall(distance_fisher(weights, root, fisher) * slack + 1e-9, fisher).project(weights, root)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@given(weighed(3), RADIUS)
def test_no_other_point_of_the_fisher_ball_is_nearer_than_the_projection(
    given_: tuple[list[Point], Point], radius: float
) -> None:
    (root, weights, other), fisher = given_
    start = copied(weights)
    project_fisher(weights, root, fisher, radius)
    shrink = min(1.0, radius / max(distance_fisher(other, root, fisher), 1e-300))
    inside = {n: root[n].double() + shrink * (t.double() - root[n].double()) for n, t in other.items()}
    assert distance_l2(start, weights) <= distance_l2(start, inside) + 10 * ROUNDING


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
def test_the_fisher_projection_is_the_point_that_a_general_optimiser_finds(seed: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    root, start = torch.randn(2, 4, generator=generator).unbind()
    fisher = torch.rand(4, generator=generator) ** 4 * 10
    found = scipy.optimize.minimize(
        lambda w: float(((torch.tensor(w) - start.double()) ** 2).sum()),
        root.double().numpy(),
        jac=lambda w: (2 * (torch.tensor(w) - start.double())).numpy(),
        constraints={
            "type": "ineq",
            "fun": lambda w: radius**2 - float((fisher * (torch.tensor(w) - root) ** 2).sum()),
            "jac": lambda w: (-2 * fisher * (torch.tensor(w) - root)).double().numpy(),
        },
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    weights = {"w": start.clone()}
    project_fisher(weights, {"w": root}, {"w": fisher}, radius)
    assert weights["w"].tolist() == pytest.approx(found.x.tolist(), abs=2e-4)


@given(points(2), RADIUS)
def test_where_all_weights_matter_alike_the_fisher_ball_is_the_l_2_ball(
    two: list[Point], radius: float
) -> None:
    root, weights = two
    other = copied(weights)
    FisherBall(radius, {n: torch.ones_like(t) for n, t in root.items()}).project(weights, root)
    L2Ball(radius).project(other, root)
    assert largest_move(weights, other) <= 4 * ROUNDING


def test_what_matters_more_is_pulled_back_further_and_what_does_not_matter_is_free() -> None:
    root, weights = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    project_fisher(weights, root, {"w": torch.tensor([0.0, 1.0, 4.0])}, 1.0)
    free, some, much = weights["w"].tolist()
    assert free == 1.0
    assert 1.0 > some > much > 0.0


@settings(deadline=None)
@given(stored_roots(), st.data(), st.floats(1e-2, 3.0))
def test_what_is_rounded_to_bfloat16_stays_inside_the_fisher_ball(
    pair: tuple[Point, Point], data: st.DataObject, radius: float
) -> None:
    stored, weights = pair
    fisher = {
        name: torch.tensor(data.draw(st.lists(IMPORTANCE, min_size=len(t), max_size=len(t))))
        for name, t in stored.items()
    }
    ball = FisherBall(radius, fisher)
    ball.project(weights, {name: root.float() for name, root in stored.items()})
    rounded = round_inside(weights, stored, ball)
    assert all(tensor.dtype == torch.bfloat16 for tensor in rounded.values())
    assert distance_fisher(rounded, stored, fisher) <= radius * (1 + 1e-5)


def test_the_fisher_ball_needs_the_fisher_information() -> None:
    with pytest.raises(ValueError, match="Fisher information"):
        build_constraint("fisher", 1.0)


# No bound


@given(points(2), RADIUS)
def test_without_a_constraint_nothing_is_moved_and_all_is_inside(two: list[Point], radius: float) -> None:
    root, weights = two
    before = copied(weights)
    free = Unconstrained()
    free.project(weights, root)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert free.contains(weights, root)


@given(stored_roots(), RADIUS)
def test_what_is_rounded_to_bfloat16_stays_inside_the_l_inf_ball(
    pair: tuple[Point, Point], radius: float
) -> None:
    stored, weights = pair
    ball = LInfBall(radius)
    ball.project(weights, {name: root.float() for name, root in stored.items()})
    rounded = round_inside(weights, stored, ball)
    assert all(tensor.dtype == torch.bfloat16 for tensor in rounded.values())
    assert largest_move(rounded, stored) <= radius * (1 + ROUNDING)
    assert ball.contains(rounded, stored)


@settings(deadline=None)
@given(stored_roots(), st.floats(1e-2, 3.0))
def test_what_is_rounded_to_bfloat16_stays_inside_the_l_2_ball(
    pair: tuple[Point, Point], radius: float
) -> None:
    stored, weights = pair
    ball = L2Ball(radius)
    ball.project(weights, {name: root.float() for name, root in stored.items()})
    rounded = round_inside(weights, stored, ball)
    assert all(tensor.dtype == torch.bfloat16 for tensor in rounded.values())
    assert distance_l2(rounded, stored) <= radius * (1 + 1e-5)


@given(points(2), RADIUS)
def test_a_float32_model_is_inside_the_ball_to_the_last_bit_after_rounding(
    two: list[Point], radius: float
) -> None:
    root, weights = two
    LInfBall(radius).project(weights, root)
    rounded = round_inside(weights, root, LInfBall(radius))
    assert largest_move(rounded, root) <= radius * (1 + ROUNDING)


@given(stored_roots(), RADIUS)
def test_rounding_inside_goes_no_further_than_one_unit_in_the_last_place(
    pair: tuple[Point, Point], radius: float
) -> None:
    stored, weights = pair
    ball = LInfBall(radius)
    ball.project(weights, {name: root.float() for name, root in stored.items()})
    for name, tensor in round_inside(weights, stored, ball).items():
        for new, exact in zip(tensor.tolist(), weights[name].tolist(), strict=True):
            # bfloat16 keeps 8 bits of significand.
            unit = 2.0 ** (math.frexp(max(abs(new), abs(exact), 1e-30))[1] - 8)
            assert abs(new - exact) <= unit


@given(stored_roots())
def test_weights_that_round_to_inside_are_rounded_to_the_nearest(pair: tuple[Point, Point]) -> None:
    stored, weights = pair
    nearest = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    assume(largest_move(nearest, stored) < 99.0)
    rounded = round_inside(weights, stored, LInfBall(100.0))
    assert all(torch.equal(rounded[name], nearest[name]) for name in nearest)


def test_bfloat16_rounding_alone_would_step_out_of_the_ball() -> None:
    root = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    ball = LInfBall(0.007)
    weights = {"w": torch.tensor([2.0])}
    ball.project(weights, {"w": root["w"].float()})
    # The neighbours of 1.0 in bfloat16 are 0.0078 away: the nearest one lies outside.
    assert not ball.contains({"w": weights["w"].to(torch.bfloat16)}, root)
    assert round_inside(weights, root, ball)["w"].tolist() == [1.0]


def test_a_radius_below_the_dtypes_resolution_leaves_the_root_as_it_is() -> None:
    root = {"w": torch.tensor([1.0, -3.0, 0.5], dtype=torch.bfloat16)}
    ball = L2Ball(1e-4)
    weights = {"w": torch.tensor([1.1, -3.1, 0.6])}
    ball.project(weights, {"w": root["w"].float()})
    assert torch.equal(round_inside(weights, root, ball)["w"], root["w"])


def test_each_norm_has_its_set() -> None:
    root, far = {"w": torch.zeros(4)}, {"w": torch.full((4,), 0.9)}
    assert build_constraint("l_inf", 1.0).contains(far, root)
    assert not build_constraint("l_2", 1.0).contains(far, root)
    assert not build_constraint("l_inf", 0.8).contains(far, root)
    assert build_constraint("none", 0.0).contains(far, root)
    quarter = {"w": torch.full((4,), 0.25)}
    assert build_constraint("fisher", 1.0, quarter).contains(far, root)
    assert not build_constraint("fisher", 0.8, quarter).contains(far, root)
