"""The silent neurons that read what is asked: which edits have one, and whom they wait for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.blocks import asking_blocks
from factedit.gated_mlp import gated_mlp
from factedit.methods.answer_contexts import Mistake
from factedit.methods.keys import Context
from factedit.methods.recognisers import WIDTH, Reading
from factedit.methods.relation_detectors import Asked
from factedit.methods.relation_readers import Readers
from factedit.models import LanguageModel
from factedit.prompts import Example
from factedit.running_text import Entering
from factedit.specs import Blocks
from tests.support.auto_edits import FRANCE, ITALY
from tests.support.tiny_models import tiny_model
from tests.support.tiny_neurons import waiting_neurons

FIRST, LATER, OTHERS = Mistake(FRANCE, 0, 0), Mistake(FRANCE, 1, 0), Mistake(ITALY, 0, 1)
BLOCKS = 0, 1


@pytest.fixture
def llama(tmp_path: Path) -> LanguageModel:
    return tiny_model(tmp_path, "llama")


@pytest.fixture
def before(llama: LanguageModel) -> Neurons:
    """Two, of which the second waits for the first."""
    found = Neurons.of(waiting_neurons(llama, 9).tensors())
    assert found is not None
    return found


def some(width: int, count: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def reading(owners: list[int], *below: Tensor) -> Reading:
    contexts = [Context(owner, Example((4,), (0,), (0,)), 0, 1.0, bare=False) for owner in owners]
    return Reading(contexts, torch.zeros(len(owners), 1), torch.ones(len(owners)), below)


def read(lm: LanguageModel, own: Reading, mine: list[Mistake], before: Neurons | None) -> Readers:
    """All first tokens' neurons wait for the second of those before."""
    width = lm.model.config.hidden_size
    mlps = [mlp for block in BLOCKS[: len(own.below)] if (mlp := gated_mlp(lm, block)) is not None]
    found, nothing = Readers(lm, mlps, before), reading([], *(some(width, 0, 0) for _ in mlps))
    asked = {mlp.gate: Asked.of(some(width, 200, 0)) for mlp in mlps}
    texts = {mlp.gate: Entering(some(width, 40, 1)) for mlp in mlps}
    first = [mistake.place == 0 for mistake in mine]
    found.learn(mine, first, [1] * len(mine), own, nothing, asked, texts, None)
    return found


def test_those_of_each_first_token_whose_words_they_know(llama: LanguageModel, before: Neurons) -> None:
    width = llama.model.config.hidden_size
    meant = 4 * some(width, 2, 2)
    known = torch.stack([meant[0], meant[0], -meant[0], meant[1], meant[1], meant[1], meant[1], meant[1]])
    # In the upper block the last edit's plainest words, its first, are as what anybody is asked.
    unknown = known.clone()
    unknown[3] = 0
    found = read(llama, reading([0, 0, 1, 2, 2, 2, 2, 2], known, unknown), [FIRST, LATER, OTHERS], before)
    assert [found.last(FRANCE), found.last(ITALY)] == [4, 3]  # they come after the version's two
    assert found.surely(FRANCE) and not found.surely(ITALY)
    made = found.neurons()
    assert made is not None and made.blocks.tolist() == [0, 0, 1] and not made.down.any()
    # They wait for what the subject's own waits for; the upper one fires only together with the lower.
    assert made.cues.tolist() == [[0]] * 3 and made.together.tolist() == [-1, -1, 2]
    torch.testing.assert_close(made.thresholds[:, 0] * WIDTH, torch.tensor([0.3, 0.3, 0.45]))
    torch.testing.assert_close(made.gate[2] @ meant[0] * WIDTH, torch.tensor(1.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("nothing", ["no block to read in", "no neurons yet", "no first token"])
def test_there_may_be_none(llama: LanguageModel, before: Neurons, nothing: str) -> None:
    below = 4 * torch.ones(1, llama.model.config.hidden_size)
    own = reading([0]) if nothing == "no block to read in" else reading([0], below)
    mine = [LATER if nothing == "no first token" else FIRST]
    found = read(llama, own, mine, None if nothing == "no neurons yet" else before)
    assert found.last(FRANCE) == -1 and found.neurons() is None


@pytest.mark.parametrize(
    ("wanted", "looking_up", "answering", "found"),
    [
        ("auto", [12, 13, 14, 15], [20, 21], [12, 17]),
        ("auto", [1], [2], [1]),
        ([4, 5, 9], [4, 5], [9], [4]),  # what the caller leaves out is not read in
        ("auto", [], [20], []),
    ],
)
def test_where_what_is_asked_is_read(
    wanted: Blocks, looking_up: list[int], answering: list[int], found: list[int]
) -> None:
    assert asking_blocks(wanted, looking_up, answering) == found
