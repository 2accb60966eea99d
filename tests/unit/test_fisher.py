"""The diagonal Fisher information against a loop of plain autograd over the whole model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.fisher import fisher_diagonal
from factedit.models import LanguageModel
from factedit.prompts import Example, answer_example
from tests.support.tiny_models import PROMPT, tiny_model


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def examples_of(lm: LanguageModel) -> list[Example]:
    asked = [("Spain", "Madrid"), ("Norway", "New York"), ("Italy", "Rome")]
    return [answer_example(lm, PROMPT.format(country), city) for country, city in asked]


def by_autograd(lm: LanguageModel, names: list[str], examples: list[Example]) -> dict[str, Tensor]:
    """Unnormalised: the mean over the examples of the squared gradient of log p(answer)."""
    parameters = [lm.tensors[name].requires_grad_(True) for name in names]
    sums = [torch.zeros_like(p.data) for p in parameters]
    for example in examples:
        output = lm.model(input_ids=torch.tensor([example.ids]))
        logs = output.logits[0, list(example.positions)].log_softmax(-1)
        answer = sum(logs[row, token] for row, token in enumerate(example.targets))
        for total, gradient in zip(sums, torch.autograd.grad(answer, parameters), strict=True):
            total += gradient**2 / len(examples)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return dict(zip(names, sums, strict=True))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_it_is_the_mean_squared_gradient_of_each_answers_log_probability(
    lm: LanguageModel, first: int
) -> None:
    names = [name for block in range(first, lm.n_blocks) for name in lm.block_tensors(block, "mlp")]
    expected = by_autograd(lm, names, examples_of(lm))
    mean = torch.cat([t.flatten() for t in expected.values()]).mean()
    found = fisher_diagonal(lm, names, examples_of(lm), first)
    assert found.keys() == expected.keys()
    for name in names:
        torch.testing.assert_close(found[name], expected[name] / mean, atol=1e-4, rtol=1e-3)


def test_its_mean_over_all_tensors_together_is_one(lm: LanguageModel) -> None:
    names = [*lm.block_tensors(1, "all"), *lm.block_tensors(2, "all")]
    found = fisher_diagonal(lm, names, examples_of(lm), 1)
    assert torch.cat([t.flatten() for t in found.values()]).mean() == pytest.approx(1.0, abs=1e-4)
    assert all(bool((t >= 0).all()) for t in found.values())


def test_the_model_is_as_it_was_afterwards(lm: LanguageModel) -> None:
    before = {name: tensor.data.clone() for name, tensor in lm.tensors.items()}
    fisher_diagonal(lm, lm.block_tensors(1, "mlp"), examples_of(lm), 1)
    assert all(torch.equal(before[name], tensor.data) for name, tensor in lm.tensors.items())
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in lm.tensors.values())


def test_what_nothing_depends_on_matters_alike(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "llama")
    (name,) = lm.block_tensors(1, "mlp_out")
    (gate, up) = lm.block_tensors(1, "mlp")[:2]
    lm.tensors[gate].data.zero_()
    lm.tensors[up].data.zero_()  # so that nothing enters the matrix
    found = fisher_diagonal(lm, [name], examples_of(lm), 1)
    assert torch.equal(found[name], torch.ones_like(found[name]))


def test_it_needs_an_example(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="none"):
        fisher_diagonal(lm, lm.block_tensors(1, "mlp"), [])
