"""Answers computed alone, over contexts that were read before, are the answers of whole examples."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from factedit import frozen_context
from factedit.example_sets import ExampleSet
from factedit.frozen_context import FrozenContexts, can_freeze
from factedit.models import LanguageModel
from factedit.prompts import Example, answer_example, next_token_example
from factedit.trees import Rows
from tests.support.tiny_models import CAUSAL, CITIES, COUNTRIES, MASKED, PROMPT, tiny_model


@pytest.fixture(scope="module", params=CAUSAL)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def examples(lm: LanguageModel) -> list[Example]:
    """Of several lengths: short and long contexts, answers of one and of three tokens."""
    return [
        *(answer_example(lm, PROMPT.format(c), o) for c, o in zip(COUNTRIES, CITIES, strict=True)),
        answer_example(lm, "The people of New York speak . The capital of France is", "New York"),
        next_token_example(lm, "Rome"),
        next_token_example(lm, "The river"),
    ]


def both(lm: LanguageModel, index: Sequence[int], block: int) -> tuple[torch.Tensor, torch.Tensor]:
    some = examples(lm)
    places = range(len(some))
    (one, frozen), (two, whole) = (
        kind(lm, some, places, block).logits(index) for kind in (FrozenContexts, ExampleSet)
    )
    assert torch.equal(one.rows, two.rows) and torch.equal(one.targets, two.targets)
    assert torch.equal(one.index, two.index)
    return frozen, whole


@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_root_answers_alike_either_way(lm: LanguageModel, block: int) -> None:
    frozen, whole = both(lm, [8, 0, 6, 7, 3], block)
    torch.testing.assert_close(frozen, whole, atol=1e-4, rtol=1e-4)
    assert can_freeze(lm, examples(lm), block)


def test_an_edit_of_the_last_blocks_mlp_answers_alike_either_way(lm: LanguageModel) -> None:
    # No later block reads the context: there the frozen one is exact.
    some, last = examples(lm), lm.n_blocks - 1
    sets = [kind(lm, some, range(len(some)), last) for kind in (FrozenContexts, ExampleSet)]
    names = lm.block_tensors(last, "mlp_out")
    roots = {name: lm.tensors[name].data for name in names}
    try:
        for name in names:
            lm.tensors[name].data = roots[name] + 0.1
        (_, frozen), (_, whole) = (each.logits([0, 6, 7]) for each in sets)
    finally:
        for name, root in roots.items():
            lm.tensors[name].data = root
    torch.testing.assert_close(frozen, whole, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_chosen_blocks(lm: LanguageModel) -> None:
    some = examples(lm)
    (name,) = lm.block_tensors(1, "mlp_out")
    frozen = FrozenContexts(lm, some, range(len(some)), 1)
    lm.tensors[name].requires_grad_(True)
    try:
        _, logits = frozen.logits([0, 1, 6])
        logits.logsumexp(-1).sum().backward()
        gradient = lm.tensors[name].grad
        assert gradient is not None and float(gradient.abs().sum()) > 0
    finally:
        lm.tensors[name].requires_grad_(False)
        lm.tensors[name].grad = None


@pytest.mark.parametrize("shape", MASKED)
def test_a_masked_model_has_no_context_to_freeze(shape: str, tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, shape)
    assert not can_freeze(lm, [answer_example(lm, PROMPT.format("France"), "Rome")], 1)


def test_what_was_tried_is_tried_again_for_longer_examples_and_other_blocks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, tried = tiny_model(tmp_path, "llama"), list[int]()

    def freezes(_: LanguageModel, __: Sequence[Example], block: int) -> bool:
        tried.append(block)
        return True

    monkeypatch.setattr(frozen_context, "_freezes", freezes)
    some = sorted(examples(lm), key=lambda example: len(example.ids))
    assert len(some[0].ids) < len(some[-1].ids)
    for asked, block in ((some[:1], 1), (some[:1], 1), (some[-1:], 1), (some[:1], 1), (some[:1], 2)):
        assert can_freeze(lm, asked, block)
    assert tried == [1, 1, 2]


def test_a_model_that_answers_otherwise_from_a_frozen_context_is_not_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, kept = tiny_model(tmp_path, "llama"), FrozenContexts._read

    def forgetful(self: FrozenContexts, rows: Rows) -> None:
        kept(self, rows)
        for each in rows.placed:
            keys, values = self._context
            keys.update({each.sequence: torch.zeros_like(keys[each.sequence])})
            values.update({each.sequence: 9 * torch.ones_like(values[each.sequence])})

    monkeypatch.setattr(FrozenContexts, "_read", forgetful)
    assert not can_freeze(lm, examples(lm), 1)
