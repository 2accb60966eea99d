"""Projections onto directions of low curvature: worked out by hand, and by their properties."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.kronecker import Factors
from factedit.low_curvature import LowCurvature, left_open
from factedit.models import LanguageModel
from factedit.steps import AdamSteps, ProjectedSteps
from tests.support.tiny_models import tiny_model

ONES = torch.ones(2, 3)


def diagonal(leaving: Sequence[float], entering: Sequence[float]) -> Factors:
    return Factors(torch.diag(torch.tensor(entering)), torch.diag(torch.tensor(leaving)))


def random_factors(seed: int, leaving: int = 6, entering: int = 9) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    roots = [torch.randn(width, width + 2, generator=generator) for width in (entering, leaving)]
    return Factors(*(root @ root.T for root in roots))


def bend(factors: Factors, direction: Tensor) -> float:
    return float(torch.trace(direction.T @ factors.leaving @ direction @ factors.entering))


# Products of (4, 1) and (4, 2, 0): 16, 8, 0 and 4, 2, 0, which are 30 in all.


@pytest.mark.parametrize(
    ("share", "left"),
    [
        (0.5, [[0, 1, 1], [1, 1, 1]]),
        (0.6, [[0, 0, 1], [1, 1, 1]]),
        (0.81, [[0, 0, 1], [0, 1, 1]]),
        (0.95, [[0, 0, 1], [0, 0, 1]]),
    ],
)
def test_the_largest_products_are_closed_until_they_hold_the_share(
    share: float, left: list[list[int]]
) -> None:
    found = left_open(diagonal([4.0, 1.0], [4.0, 2.0, 0.0]), share)
    torch.testing.assert_close(found.project(ONES), torch.tensor(left).float())


def test_entries_of_one_curvature_are_closed_together() -> None:
    found = left_open(diagonal([1.0, 1.0], [2.0, 2.0, 1.0]), 0.3)
    assert torch.equal(found.project(ONES), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))


def test_a_rotated_matrix_is_rotated_back() -> None:
    # Eigenvectors at 45 degrees: only what goes along (1, 1), for both sides, is closed.
    turned = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    found = left_open(Factors(turned, turned), 0.9)
    gradient = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(found.project(gradient), gradient - torch.ones(2, 2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
def test_it_is_an_orthogonal_projection_that_leaves_no_more_than_the_other_share(
    seed: int, share: float
) -> None:
    factors = random_factors(seed)
    found = left_open(factors, share)
    gradient, other = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(seed + 100))
    kept = found.project(gradient)
    torch.testing.assert_close(found.project(kept), kept, atol=1e-4, rtol=1e-4)
    # What was taken away is orthogonal to whatever is kept.
    assert float(((gradient - kept) * found.project(other)).sum()) == pytest.approx(0, abs=1e-3)
    # tr A tr G is the sum of the curvatures along any basis.
    basis = torch.eye(54).view(54, 6, 9)
    every = sum(bend(factors, each) for each in basis)
    left = sum(bend(factors, found.project(each)) for each in basis)
    assert every == pytest.approx(float(factors.entering.trace() * factors.leaving.trace()), rel=1e-3)
    assert left <= (1 - share) * every * (1 + 1e-3)
    products = torch.outer(*(torch.linalg.eigvalsh(each) for each in (factors.leaving, factors.entering)))
    largest = products.flatten().sort(descending=True).values[: int((1 - found.entries).sum())]
    assert float(largest[:-1].sum()) < share * every  # one closed entry fewer would not do


def test_where_nothing_bends_everything_is_open() -> None:
    found = left_open(diagonal([0.0, 0.0], [1.0, 1.0, 1.0]), 0.8)
    assert torch.equal(found.project(ONES), ONES)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("model"), "gpt2")


def test_a_conv1d_is_projected_as_its_transpose(gpt2: LanguageModel, tmp_path: Path) -> None:
    (name,) = gpt2.block_tensors(0, "mlp_out")
    llama = tiny_model(tmp_path, "llama")
    (straight,) = llama.block_tensors(0, "mlp_out")
    factors = random_factors(0, leaving=32, entering=64)
    gradient = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    turned = LowCurvature(gpt2, {name: factors}, 0.8)(name, gradient.T)
    torch.testing.assert_close(turned.T, LowCurvature(llama, {straight: factors}, 0.8)(straight, gradient))


def test_steps_are_taken_on_what_is_left_of_the_gradient(gpt2: LanguageModel) -> None:
    (name,) = gpt2.block_tensors(0, "mlp_out")
    first = Factors(
        torch.diag(torch.eye(64)[0]), torch.diag(torch.ones(32))
    )  # all of the first input's column
    weights = {name: torch.zeros(64, 32)}
    steps = ProjectedSteps(LowCurvature(gpt2, {name: first}, 0.8), AdamSteps(0.1))
    steps(weights, {name: torch.ones(64, 32)})
    assert torch.equal(weights[name][0], torch.zeros(32))
    torch.testing.assert_close(weights[name][1:], torch.full((63, 32), -0.1))
