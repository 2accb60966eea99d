"""Curvature-aware steps against cases worked out by hand, and against autograd."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from factedit.curvature import Covariance, HalfPreconditioner, NoCurvature, measure
from factedit.models import LanguageModel
from factedit.prompts import prompt_ids
from factedit.steps import AdamSteps, NaturalAdamSteps
from tests.support.tiny_models import SHAPES, tiny_model

PROMPTS = ["The capital of France is", "Oslo lies in", "Rome is", "The people of New York speak Paris"]


def inputs_of(lm: LanguageModel, name: str) -> list[Tensor]:
    """What enters a matrix, prompt by prompt with nothing padded: [tokens, d_in]."""
    seen: list[Tensor] = []
    layer = lm.model.get_submodule(name.rpartition(".")[0])
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()[0]))
    with torch.no_grad():
        for prompt in PROMPTS:
            lm.model(input_ids=torch.tensor([prompt_ids(lm, prompt)]))
    handle.remove()
    return seen


@pytest.mark.parametrize("shape", SHAPES)
def test_the_covariance_is_the_sum_over_all_real_tokens(shape: str, tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, shape)
    names = [name for block in range(lm.n_blocks) for name in lm.block_tensors(block, "mlp")]
    measured = measure(lm, names, PROMPTS)
    assert set(measured.sums) == set(names)
    if lm.task == "masked":  # a masked model reads its mask and full stop as well
        assert measured.tokens > sum(len(prompt.split()) for prompt in PROMPTS)
        return
    for name in names:
        inputs = torch.cat(inputs_of(lm, name))
        assert measured.tokens == len(inputs)
        torch.testing.assert_close(measured.sums[name], inputs.T @ inputs, atol=1e-3, rtol=1e-3)


def test_taking_a_part_away_leaves_the_rest(llama: LanguageModel) -> None:
    names = llama.block_tensors(1, "mlp_out")
    whole, part, rest = (measure(llama, names, p) for p in (PROMPTS, PROMPTS[:1], PROMPTS[1:]))
    left = whole.minus(part)
    assert left.tokens == rest.tokens
    torch.testing.assert_close(left.sums[names[0]], rest.sums[names[0]], atol=1e-3, rtol=1e-3)


def test_measuring_tells_how_far_it_is(llama: LanguageModel) -> None:
    told: list[tuple[int, int]] = []
    measure(llama, llama.block_tensors(0, "mlp_out"), PROMPTS, lambda done, of: told.append((done, of)))
    assert told[-1] == (len(PROMPTS), len(PROMPTS))


def test_a_norms_weight_has_no_curvature(llama: LanguageModel) -> None:
    norm = next(name for name in llama.block_tensors(0, "all") if "norm" in name)
    with pytest.raises(NoCurvature):
        measure(llama, [norm], PROMPTS)


def test_adams_first_step_is_the_learning_rate_against_the_gradients_sign() -> None:
    weights = {"w": nn.Parameter(torch.tensor([1.0, 1.0, 1.0])).data}
    AdamSteps(0.1)(weights, {"w": torch.tensor([5.0, -0.01, 0.0])})
    torch.testing.assert_close(weights["w"], torch.tensor([0.9, 1.1, 1.0]), atol=1e-5, rtol=1e-5)


def half(total: Tensor, damping: float, lm: LanguageModel) -> tuple[str, HalfPreconditioner]:
    (name,) = lm.block_tensors(0, "mlp_out")
    return name, HalfPreconditioner(lm, Covariance({name: total}, 1), damping)


def test_half_a_preconditioner_twice_is_the_damped_inverse_times_the_damping(llama: LanguageModel) -> None:
    root = torch.randn(64, 80, generator=torch.Generator().manual_seed(0))
    total = root @ root.T
    name, once = half(total, 0.1, llama)
    gradient = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    damped = total / total.diagonal().mean() + 0.1 * torch.eye(64)
    wanted = 0.1 * gradient @ torch.linalg.inv(damped)
    torch.testing.assert_close(once(name, once(name, gradient)), wanted, atol=1e-4, rtol=1e-3)


def test_natural_adam_moves_unused_directions_as_adam_and_spares_the_used_ones(llama: LanguageModel) -> None:
    used = torch.zeros(64)
    used[:32] = 1.0
    name, once = half(used.diag(), 1e-4, llama)
    weights = {name: torch.zeros(32, 64)}
    steps = NaturalAdamSteps(once, learning_rate=0.01, total=1000)
    steps(weights, {name: torch.ones(32, 64)})
    moved = -weights[name]
    # The first of five steps of warming up.
    torch.testing.assert_close(moved[:, 32:], torch.full((32, 32), 0.01 / 5), rtol=0.01, atol=0)
    assert float(moved[:, :32].max()) < 0.02 * float(moved[:, 32:].min())
