"""The silent neurons that read what is asked: which edits have one, and whom they wait for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.gated_mlp import gated_mlp
from factedit.methods.answer_contexts import Mistake
from factedit.methods.keys import Context
from factedit.methods.recognisers import WIDTH, Reading
from factedit.methods.relation_detectors import Asked, told_apart
from factedit.methods.relation_readers import THRESHOLD, Readers, asking_block
from factedit.models import LanguageModel
from factedit.prompts import Example
from factedit.specs import ConstraintSpec, MethodSpec
from factedit.task import plan
from tests.support.auto_edits import FRANCE, ITALY
from tests.support.tiny_models import tiny_model
from tests.support.tiny_neurons import waiting_neurons

FIRST, LATER, OTHERS = Mistake(FRANCE, 0, 0), Mistake(FRANCE, 1, 0), Mistake(ITALY, 0, 1)


@pytest.fixture
def llama(tmp_path: Path) -> LanguageModel:
    return tiny_model(tmp_path, "llama")


def reading(below: Tensor, owners: list[int]) -> Reading:
    contexts = [Context(owner, Example((4,), (0,), (0,)), 0, 1.0, bare=False) for owner in owners]
    return Reading(contexts, torch.zeros_like(below), torch.ones(len(owners)), below)


def read(lm: LanguageModel, own: Reading, mine: list[Mistake], before: Neurons | None) -> Readers:
    mlp, width = gated_mlp(lm, 1), lm.model.config.hidden_size
    assert mlp is not None
    asked = {mlp.gate: asked_of_anybody(width)}
    found = Readers(mlp, before)
    others = reading(torch.zeros(0, width), [])
    found.learn(mine, [m.place == 0 for m in mine], [1] * len(mine), own, others, asked, None)
    return found


def asked_of_anybody(width: int) -> Asked:
    return Asked.of(torch.randn(200, width, generator=torch.Generator().manual_seed(0)))


def test_one_for_each_first_token_whose_words_it_knows(llama: LanguageModel) -> None:
    width = llama.model.config.hidden_size
    meant = 4 * torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    # The last edit's plainest words, its first, are as what anybody is asked: it is not known by them.
    below = torch.stack([meant[0], meant[0], -meant[0], 0 * meant[1], meant[1], meant[1], meant[1], meant[1]])
    own = reading(below, [0, 0, 1, 2, 2, 2, 2, 2])
    before = Neurons.of(waiting_neurons(llama, 9).tensors())
    found = read(llama, own, [FIRST, LATER, OTHERS], before)
    assert found.of == {FRANCE: 2}  # it comes after the version's two
    made = found.neurons(llama)
    assert made is not None and made.blocks.tolist() == [1] and not made.down.any()
    assert made.cues.tolist() == [[0]] and made.together.tolist() == [-1]  # what neuron 1 waits for
    mine, nobody = (own.lower().keys().of(torch.tensor([each, False, False])) for each in (True, False))
    (row,) = told_apart(asked_of_anybody(width), mine, nobody, 1)
    torch.testing.assert_close(made.gate[0], (row / WIDTH).to(made.gate.dtype))
    assert made.thresholds[0, 0] == pytest.approx(THRESHOLD / WIDTH)


def test_an_edit_has_one_alone_though_it_is_mended_twice(llama: LanguageModel) -> None:
    below = 4 * torch.ones(1, llama.model.config.hidden_size)
    before = Neurons.of(waiting_neurons(llama, 9).tensors())
    found = read(llama, reading(below.repeat(2, 1), [0, 1]), [FIRST, FIRST], before)
    made = found.neurons(llama)
    assert found.of == {FRANCE: 2} and made is not None and len(made.blocks) == 1


@pytest.mark.parametrize("nothing", ["no block to read in", "no neurons yet", "no first token"])
def test_there_may_be_none(llama: LanguageModel, nothing: str) -> None:
    below = 4 * torch.ones(1, llama.model.config.hidden_size)
    before = None if nothing == "no neurons yet" else Neurons.of(waiting_neurons(llama, 9).tensors())
    mine = [LATER if nothing == "no first token" else FIRST]
    found = read(llama, reading(below, [0]), mine, before)
    if nothing == "no block to read in":
        found = Readers(None, before)
        found.learn(mine, [True], [1], reading(below, [0]), reading(below[:0], []), {}, None)
    assert found.of == {} and found.neurons(llama) is None


@pytest.mark.parametrize(("blocks", "wanted"), [([12, 13, 14, 15], 14), ([1], 1), ([], None)])
def test_it_is_read_above_the_middle_of_the_blocks_that_look_subjects_up(
    llama: LanguageModel, blocks: list[int], wanted: int | None
) -> None:
    chosen = plan(llama, MethodSpec(), "auto", ConstraintSpec())
    assert asking_block(replace(chosen, looking_up=blocks)) == wanted
