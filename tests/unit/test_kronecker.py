"""K-FAC's factors against plain autograd, and where tokens are alike, against the curvature itself."""

import pytest
import torch
from torch import Tensor, nn

from factedit import kronecker
from factedit.curvature import NoCurvature, linear_layer
from factedit.kronecker import kronecker_factors, sampled
from factedit.models import LanguageModel
from factedit.prompts import next_token_example
from tests.support.tiny_models import PROMPT, tiny_model

TEXTS = ["The capital of France is Paris", "Oslo", "Rome lies in Italy", PROMPT.format("New York")]


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture
def surest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most probable label instead of a sampled one."""
    monkeypatch.setattr(kronecker, "sampled", lambda logits, _: logits.argmax(-1))


def by_autograd(lm: LanguageModel, name: str, text: str) -> tuple[Tensor, Tensor]:
    """(what enters a matrix at a text's tokens, the gradients at what leaves it), by the whole model."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0].detach()[0], output.requires_grad_(True) if output.is_leaf else output))

    handle = linear_layer(lm, name).register_forward_hook(watch)
    example = next_token_example(lm, text)
    logits = lm.model(input_ids=torch.tensor([example.ids])).logits[0]
    if lm.task == "masked":
        logits = logits[list(example.positions)]
    handle.remove()
    loss = nn.functional.cross_entropy(logits, logits.argmax(-1), reduction="sum")
    ((entered, left),) = seen
    (gradient,) = torch.autograd.grad(loss, [left])
    return entered, gradient[0]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("at_once", [1024, 6])
@pytest.mark.usefixtures("surest")
def test_they_are_the_mean_outer_products_of_inputs_and_of_gradients_over_all_tokens(
    lm: LanguageModel, first: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kronecker, "AT_ONCE", at_once)
    names = [name for block in range(first, lm.n_blocks) for name in lm.block_tensors(block, "mlp")]
    found = kronecker_factors(lm, names, TEXTS, seed=0, first_block=first)
    assert list(found) == names
    for name in names:
        pairs = [by_autograd(lm, name, text) for text in TEXTS]
        x, g = (torch.cat(side) for side in zip(*pairs, strict=True))
        torch.testing.assert_close(found[name].entering, x.T @ x / len(x), atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(found[name].leaving, g.T @ g / len(g), atol=1e-5, rtol=1e-3)


def test_where_all_tokens_are_alike_they_are_the_curvature_itself(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Then A and G are of one x, and E[(D . dW)^2] = tr(D^T G D A) for every D, with dW = g x^T of each label.
    drawn: list[int] = []

    def watched(logits: Tensor, generator: torch.Generator) -> Tensor:
        labels = sampled(logits, generator)
        drawn.extend(labels.tolist())
        return labels

    monkeypatch.setattr(kronecker, "sampled", watched)
    (name,) = llama.block_tensors(llama.n_blocks - 1, "mlp_out")
    found = kronecker_factors(llama, [name], ["Rome"] * 300, seed=0)[name]
    assert len(set(drawn)) > 1
    weight = llama.tensors[name].requires_grad_(True)
    logits = llama.model(input_ids=torch.tensor([next_token_example(llama, "Rome").ids])).logits[0, 0]
    logs = logits.log_softmax(-1)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    slopes = {
        label: float((torch.autograd.grad(logs[label], weight, retain_graph=True)[0] * direction).sum())
        for label in set(drawn)
    }
    weight.requires_grad_(False)
    bend = torch.trace(direction.T @ found.leaving @ direction @ found.entering)
    assert float(bend) == pytest.approx(sum(slopes[label] ** 2 for label in drawn) / len(drawn), rel=1e-3)


def test_labels_are_drawn_as_often_as_the_model_says() -> None:
    logits = torch.tensor([[0.1, 0.6, 0.3, 0.0]]).log().expand(20_000, 4)
    drawn = sampled(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3, 0.0]), atol=0.02, rtol=0)
    assert int((drawn == 3).sum()) == 0


def test_the_same_seed_draws_the_same_labels(llama: LanguageModel) -> None:
    names = llama.block_tensors(1, "mlp_out")
    one, same, other = (kronecker_factors(llama, names, TEXTS, seed)[names[0]].leaving for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_model_is_as_it_was_afterwards(lm: LanguageModel) -> None:
    before = {name: tensor.data.clone() for name, tensor in lm.tensors.items()}
    kronecker_factors(lm, lm.block_tensors(1, "mlp"), TEXTS, seed=0, first_block=1)
    assert all(torch.equal(before[name], tensor.data) for name, tensor in lm.tensors.items())
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in lm.tensors.values())


@pytest.mark.parametrize(
    ("kind", "texts", "error"), [("norm", TEXTS, NoCurvature), ("down_proj", [], ValueError)]
)
def test_it_needs_matrices_and_texts(
    llama: LanguageModel, kind: str, texts: list[str], error: type[Exception]
) -> None:
    name = next(name for name in llama.block_tensors(0, "all") if kind in name)
    with pytest.raises(error):
        kronecker_factors(llama, [name], texts, seed=0)
