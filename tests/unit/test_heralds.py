"""Who announces a subject: the neuron that fires wherever it is named, and least at others."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factedit.added_neurons import Neurons
from factedit.curvature import Covariance
from factedit.facts import Edit
from factedit.methods import heralds as module
from factedit.methods.heralds import heralds
from factedit.models import LanguageModel
from factedit.overlay import Overlay
from factedit.prompts import prompt_ids
from factedit.running_text import RunningText
from factedit.specs import AnchorSpec, ConstraintSpec, MethodSpec
from factedit.task import EditTask, plan
from tests.support.tiny_models import PROMPT, tiny_model, without_attention

FRANCE, ITALY, SPAIN = (
    Edit(id=name, subject=name, prompt=PROMPT.format(name), new_object="Rome")
    for name in ("France", "Italy", "Spain")
)


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    torch.set_num_threads(1)
    return tiny_model(tmp_path, "llama")


@pytest.fixture
def firing_at(
    lm: LanguageModel,
) -> Callable[[Sequence[Sequence[str]]], Overlay]:
    """An overlay with a neuron in block 0 for each list of words, at which alone it fires.

    The model's embeddings are made far apart from each other, and all that comes between them and the first
    MLP says nothing.
    """
    without_attention(lm, block=0)
    embedding = lm.tensors[next(name for name in lm.tensors if "embed" in name)]
    size, width = embedding.shape
    embedding.data = torch.eye(size, width)

    def made(words: Sequence[Sequence[str]]) -> Overlay:
        rows = torch.zeros(len(words), width)
        for row, each in zip(rows, words, strict=True):
            row[[prompt_ids(lm, word)[-1] for word in each]] = 1
        nothing, little = torch.zeros_like(rows), torch.full_like(rows, 1e-3)
        thresholds = torch.tensor([[0.1, -9.0]]).repeat(len(words), 1)
        free = torch.full((len(words),), -1)
        return Neurons(
            torch.zeros_like(free), rows, nothing, thresholds, little, free[:, None], free
        ).tensors()

    return made


def task_of(lm: LanguageModel, edits: Sequence[Edit], ledger: Sequence[Edit]) -> EditTask:
    method = MethodSpec(anchors=AnchorSpec(count=4, weight=1.0))
    chosen = plan(lm, method, [0, 1, 2], ConstraintSpec())

    def background(_: Sequence[str]) -> Covariance:
        raise AssertionError("nothing is to be measured for this")

    texts = RunningText.of(lm, [])
    return EditTask(lm, chosen, {}, edits, ledger, {}, [], method, 0, lambda _: None, background, texts)


def test_each_subject_has_its_own_and_the_ledgers_have_theirs(
    lm: LanguageModel, firing_at: Callable[[Sequence[Sequence[str]]], Overlay]
) -> None:
    found = heralds(task_of(lm, [ITALY, SPAIN], [FRANCE]), firing_at([["France"], ["Italy"], ["Oslo"]]))
    assert found.of == {ITALY: 1, SPAIN: -1, FRANCE: 0}
    assert found.hears(ITALY, 1) and not found.hears(ITALY, 0) and not found.hears(SPAIN, 1)
    assert found.hears(SPAIN, -1)  # whoever waits for nobody speaks anywhere


def test_of_several_the_one_that_fires_least_at_others(
    lm: LanguageModel, firing_at: Callable[[Sequence[Sequence[str]]], Overlay]
) -> None:
    overlay = firing_at([["France", "Italy", "Spain"], ["France"], ["Italy", "Spain"]])
    found = heralds(task_of(lm, [FRANCE, ITALY], [SPAIN]), overlay)
    assert found.of[FRANCE] == 1 and found.of[ITALY] in (0, 2)
    assert found.hears(ITALY, 0) and found.hears(ITALY, 2) and not found.hears(ITALY, 1)


def test_one_that_says_nothing_announces_nobody(
    lm: LanguageModel, firing_at: Callable[[Sequence[Sequence[str]]], Overlay]
) -> None:
    overlay = {**firing_at([["Spain"], ["France"], ["Italy"]])}
    # The first one fires wherever the second one has, which only reads the word.
    overlay["neurons.blocks"], overlay["neurons.cues"] = torch.tensor([1, 0, 0]), torch.tensor([1, -1, -1])
    overlay["neurons.thresholds"] = torch.tensor([[-9.0, -9.0], [0.1, -9.0], [0.1, -9.0]])
    overlay["neurons.down"] = overlay["neurons.down"] * torch.tensor([[1.0], [0.0], [1.0]])
    found = heralds(task_of(lm, [FRANCE, ITALY], []), overlay)
    assert found.of == {FRANCE: 0, ITALY: 2}
    assert found.hears(FRANCE, 1) and not found.hears(ITALY, 0)


def test_one_that_waits_for_another_that_speaks_announces_nobody(
    lm: LanguageModel, firing_at: Callable[[Sequence[Sequence[str]]], Overlay]
) -> None:
    """As the answers' of a version whose answers were formed in lower blocks."""
    overlay = {**firing_at([["France"], ["France"], ["Italy"]])}
    overlay["neurons.blocks"], overlay["neurons.cues"] = torch.tensor([0, 1, 0]), torch.tensor([-1, 0, -1])
    overlay["neurons.thresholds"] = torch.tensor([[0.1, -9.0], [-9.0, -9.0], [0.1, -9.0]])
    overlay["neurons.gate"][0, prompt_ids(lm, "Italy")[-1]] = 0.3  # it fires less surely than the second
    found = heralds(task_of(lm, [FRANCE, ITALY], []), overlay)
    assert found.of == {FRANCE: 0, ITALY: 2}


def test_one_where_answers_are_formed_comes_too_late(
    lm: LanguageModel, firing_at: Callable[[Sequence[Sequence[str]]], Overlay]
) -> None:
    task = task_of(lm, [FRANCE, ITALY], [])
    overlay = {**firing_at([["Italy"], ["France"]])}
    overlay["neurons.blocks"] = torch.tensor([0, min(task.plan.answering)])
    overlay["neurons.thresholds"] = torch.tensor([[0.1, -9.0], [-9.0, -9.0]])  # anywhere
    assert heralds(task, overlay).of == {FRANCE: -1, ITALY: 0}
    del overlay["neurons.cues"]
    overlay["neurons.blocks"] += min(task.plan.answering) - overlay["neurons.blocks"]
    assert heralds(task, overlay).of == {FRANCE: -1, ITALY: -1}


def test_one_that_is_not_sure_of_its_subject_announces_nobody(
    lm: LanguageModel,
    firing_at: Callable[[Sequence[Sequence[str]]], Overlay],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It fires at a word of the plainest prompt that few others have."""
    for others, sure in ((["Oslo", "Rome", "Vienna"], False), (["Oslo of", "Rome of", "of Vienna"], True)):
        asked = [PROMPT.format("France"), *others]
        monkeypatch.setattr(module, "subject_prompts", lambda *_, found=asked: found)
        assert heralds(task_of(lm, [FRANCE], []), firing_at([["of"]])).of == {FRANCE: 0 if sure else -1}


def test_one_that_is_silent_in_the_users_words_announces_nobody(
    lm: LanguageModel, firing_at: Callable[[Sequence[Sequence[str]]], Overlay]
) -> None:
    said = replace(FRANCE, paraphrases=("the people of Spain and France", "France", "the river in Italy"))
    assert heralds(task_of(lm, [said], []), firing_at([["France"]])).of == {said: -1}
    assert heralds(task_of(lm, [], [said]), firing_at([["France"]])).of == {said: -1}
    named = replace(said, paraphrases=said.paraphrases[:2])
    assert heralds(task_of(lm, [named], []), firing_at([["France"]])).of == {named: 0}


def test_an_answer_may_name_anothers_subject(
    lm: LanguageModel, firing_at: Callable[[Sequence[Sequence[str]]], Overlay]
) -> None:
    rome = Edit(id="4", subject="Rome", prompt=PROMPT.format("Rome"), new_object="Oslo")
    found = heralds(task_of(lm, [FRANCE, rome], []), firing_at([["France"], ["Rome"]]))
    assert found.of == {FRANCE: 0, rome: 1}
    assert found.hears(FRANCE, 1) and not found.hears(rome, 0)


def test_who_is_heard_where_another_is_asked_for_is_its_rival(
    lm: LanguageModel, firing_at: Callable[[Sequence[Sequence[str]]], Overlay]
) -> None:
    again = replace(FRANCE, id="again", subject="FRANCE", prompt="the river in France")
    unheard = Edit(id="5", subject="spain", prompt="the people of spain", new_object="Oslo")
    edits = [FRANCE, ITALY, SPAIN, replace(ITALY, id="6", prompt="of Italy and France"), again]
    found = heralds(task_of(lm, edits, [unheard]), firing_at([["France"], ["Italy"]]))
    assert found.of[FRANCE] == 0 and found.of[SPAIN] == found.of[unheard] == -1
    assert found.rivals(FRANCE) == [edits[3], again]  # where its neuron fires, whoever's the prompt is
    assert found.rivals(ITALY) == [edits[3]]
    assert found.rivals(SPAIN) == [unheard]  # the same subject, if by name alone
    assert found.of[again] == -1 and found.rivals(again) == [FRANCE]


def test_without_neurons_there_is_none(lm: LanguageModel) -> None:
    found = heralds(task_of(lm, [FRANCE], []), {})
    assert found.of == {FRANCE: -1} and not found.hears(FRANCE, 0)
