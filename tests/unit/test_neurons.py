"""What neurons say, sought by hooks, is what the model answers once it is written into its matrices."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.facts import Edit
from factedit.frozen_context import FrozenContexts
from factedit.gated_mlp import GatedMlp, gated_mlp
from factedit.methods.keys import Context, contexts
from factedit.methods.neurons import Neuron, columns, of_neurons, say
from factedit.methods.value_objective import Objective
from factedit.methods.values import Search, saying, seek
from factedit.models import LanguageModel
from factedit.training import ExampleSet
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
    """One in each of two blocks, silent: whatever they fire at, their columns are zero."""
    made: list[Neuron] = []
    for block, item in enumerate(EDITS):
        mlp = gated_mlp(lm, block)
        assert isinstance(mlp, GatedMlp)
        lm.tensors[mlp.down].data[:, 3] = 0
        made.append(Neuron([item], block, mlp, 3, 1.0))
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


def test_what_is_changed_by_a_hook_is_what_the_matrices_would_say(lm: LanguageModel) -> None:
    mine = neurons(lm)
    changes = torch.randn(2, lm.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    sought = objective(lm, mine, frozen=False)
    hooked = sought(changes, [0, 1])
    exact = {n.mlp.down: lm.tensors[n.mlp.down].data for n in mine}
    say(mine, changes, exact)
    assert torch.equal(columns(mine, exact), changes)
    written = sought(torch.zeros_like(changes), [0, 1])
    for one, other in zip(hooked, written, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_computed_from_the_subjects_end_on_the_loss_is_that_of_whole_examples(lm: LanguageModel) -> None:
    mine = neurons(lm)
    unchanged = torch.zeros(2, lm.model.config.hidden_size)
    (answer, essence), (whole, _) = (objective(lm, mine, frozen=f)(unchanged, [0, 1]) for f in (True, False))
    torch.testing.assert_close(answer, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(essence, torch.zeros(2), atol=1e-5, rtol=0)


def test_a_search_moves_the_edits_that_are_sought_alone(lm: LanguageModel) -> None:
    mine = neurons(lm)
    start: Tensor = torch.full((2, lm.model.config.hidden_size), 0.01)
    length = torch.tensor([[1.0], [1.0]])
    told: list[list[float]] = []
    search = Search(steps=5, pace=0.3, longest=2.0, essence=0.0)
    values = seek(objective(lm, mine), start, length, search, lambda _, losses: told.append(losses), [1])
    torch.testing.assert_close(values.changes[0], start[0])
    assert not torch.equal(values.changes[1], start[1])
    assert told[-1][0] < told[0][0] and len(told[-1]) == 1
    assert float(values.changes[1].norm()) <= 2.0 + 1e-5
