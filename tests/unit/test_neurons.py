"""What neurons say, sought by hooks, is what the model answers once a version has them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.added_neurons import Neurons, joined
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.frozen_context import FrozenContexts
from factedit.methods.keys import Context, contexts
from factedit.methods.neurons import Neuron, of_neurons, saying_so
from factedit.methods.value_objective import Objective
from factedit.methods.values import Search, saying, seek
from factedit.models import LanguageModel
from factedit.overlay import OverlayMismatch, applied
from tests.support.tiny_models import PROMPT, tiny_model

EDITS = [
    Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome"),
    Edit(id="2", subject="Italy", prompt=PROMPT.format("Italy"), new_object="Vienna"),
]


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return tiny_model(tmp_path, "llama")


def found(lm: LanguageModel) -> tuple[list[Context], list[Context]]:
    facts = contexts(lm, EDITS, {}, lead_ins=1, seed=0)
    return facts, [saying(lm, f"{e.subject} is a", e.subject, i) for i, e in enumerate(EDITS)]


def neurons(lm: LanguageModel) -> list[Neuron]:
    """One in each of two blocks, which fire at about every other token."""
    rng, width = torch.Generator().manual_seed(1), lm.model.config.hidden_size
    made: list[Neuron] = []
    for block, item in enumerate(EDITS):
        gate, words = torch.randn(2, width, generator=rng)
        made.append(Neuron([item], block, gate, words, torch.tensor([0.0, -99.0]), 1.0))
    return made


def examples(lm: LanguageModel, every: Sequence[Context], *, frozen: bool) -> ExampleSet:
    texts, owner = [c.example for c in every], [c.edit for c in every]
    if frozen:
        return FrozenContexts(lm, texts, owner, 0, starts=[c.lookup for c in every])
    return ExampleSet(lm, texts, owner, 0)


def objective(lm: LanguageModel, mine: list[Neuron], *, frozen: bool = True) -> Objective:
    facts, sayings = found(lm)
    every = examples(lm, [*facts, *sayings], frozen=frozen)
    return Objective(every, facts, sayings, None, of_neurons(lm, mine))


def test_what_is_sought_by_a_hook_is_what_a_version_says(lm: LanguageModel) -> None:
    mine = neurons(lm)
    changes = torch.randn(2, lm.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    sought, nothing = objective(lm, mine, frozen=False), torch.zeros_like(changes)
    hooked, before = sought(changes, [0, 1]), sought(nothing, [0, 1])
    with applied(lm, saying_so(mine, changes).tensors()):
        written = sought(nothing, [0, 1])
    for one, other in zip(hooked, written, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(written[0], before[0], atol=1e-2)


def test_where_none_fires_not_a_bit_changes(lm: LanguageModel) -> None:
    said = saying_so(neurons(lm), torch.ones(2, lm.model.config.hidden_size))
    silent = replace(said, gate=torch.zeros_like(said.gate))
    ids = torch.tensor([[5, 6, 7, 8]])
    before = lm.model(input_ids=ids).logits
    with applied(lm, silent.tensors()):
        assert torch.equal(lm.model(input_ids=ids).logits, before)
    with applied(lm, said.tensors()):
        assert not torch.equal(lm.model(input_ids=ids).logits, before)
    assert torch.equal(lm.model(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"neurons.words": None}, "it has only"),
        ({"neurons.blocks": torch.tensor([0, 99])}, "block that is not there"),
        ({"neurons.blocks": torch.tensor([0.0, 1.0])}, "neurons.blocks is"),
        ({"neurons.down": torch.zeros(2, 3)}, "where the model needs"),
        ({"neurons.thresholds": torch.zeros(2, 3)}, r"where the model needs \(2, 2\)"),
    ],
)
def test_neurons_that_do_not_fit_are_refused(
    lm: LanguageModel, change: dict[str, Tensor | None], problem: str
) -> None:
    made = saying_so(neurons(lm), torch.ones(2, lm.model.config.hidden_size)).tensors() | change
    overlay = {name: tensor for name, tensor in made.items() if tensor is not None}
    with pytest.raises(OverlayMismatch, match=problem), applied(lm, overlay):
        pass


def test_neurons_of_two_batches_are_joined_in_their_order(lm: LanguageModel) -> None:
    first, second = (saying_so([n], torch.full((1, n.gate.shape[0]), 2.0)) for n in neurons(lm))
    both = joined(joined(None, first), second)
    assert both.blocks.tolist() == [0, 1]
    assert torch.equal(both.of_block(1).gate, second.gate)
    assert Neurons.of({}) is None


def test_computed_from_the_subjects_end_on_the_loss_is_that_of_whole_examples(lm: LanguageModel) -> None:
    mine = neurons(lm)
    unchanged = torch.zeros(2, lm.model.config.hidden_size)
    (answer, essence), (whole, _) = (objective(lm, mine, frozen=f)(unchanged, [0, 1]) for f in (True, False))
    torch.testing.assert_close(answer, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(essence, torch.zeros(2), atol=1e-5, rtol=0)


def test_a_search_leaves_alone_what_holds_already(lm: LanguageModel) -> None:
    mine = neurons(lm)
    start: Tensor = torch.full((2, lm.model.config.hidden_size), 0.01)
    length = torch.tensor([[1.0], [1.0]])
    losses = objective(lm, mine)(start, [0, 1])[0]
    holds, open_one = int(losses.argmin()), int(losses.argmax())
    told: list[list[float]] = []
    search = Search(steps=5, pace=0.3, longest=2.0, essence=0.0, enough=float(losses.mean()))
    values = seek(objective(lm, mine), start, length, search, lambda _, losses: told.append(losses))
    torch.testing.assert_close(values.changes[holds], start[holds])
    assert not torch.equal(values.changes[open_one], start[open_one])
    assert told[-1][open_one] < told[0][open_one] and told[-1][holds] == told[0][holds]
    assert float(values.changes[open_one].norm()) <= 2.0 + 1e-5
