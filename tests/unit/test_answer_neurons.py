"""The neurons that finish an answer: where they speak, whom they wait for, and which of them are trusted."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.anchors import anchor_prompts
from factedit.facts import Edit
from factedit.gated_mlp import gated_mlp
from factedit.methods import auto, trust
from factedit.methods.answer_contexts import Mistake, plainly_formed
from factedit.methods.finishing import ROUNDS, _mistakes
from factedit.methods.keys import Context
from factedit.methods.recognisers import Recognisers, Words, read_at
from factedit.methods.subjects import Written
from factedit.methods.trust import in_the_way, trusted
from factedit.models import LanguageModel
from factedit.overlay import applied
from factedit.prompts import answer_example
from factedit.relations import builtin_catalogue
from factedit.running_text import RunningText
from factedit.toy import toy_facts
from tests.support.auto_edits import FRANCE, ITALY, answers, ask, run, task_of
from tests.support.tiny_models import PROMPT


def test_an_answer_is_finished_where_it_is_formed(
    toy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "write_at_subjects", lambda _: Written(None, 0))
    monkeypatch.setattr(trust, "ANYWHERE", 1e-3)  # in a toy's 64 dimensions positions are hard to tell apart
    facts = toy_facts()
    new = Edit(id="1", subject=facts[0].subject, prompt=ask(facts[0]), new_object=facts[1].object)
    anchors = anchor_prompts(builtin_catalogue(), [], 400, 0)
    made = run(toy, [new], blocks="auto", anchors=anchors, texts=RunningText.of(toy, anchors))
    assert made.metrics["neurons"] == 0 and made.metrics["answer_neurons"] > 0
    assert made.metrics["changed_tensors"] == []
    with applied(toy, made.tensors):
        assert answers(toy, new)
        others = [replace(new, prompt=ask(fact), new_object=fact.object) for fact in facts[20:40]]
        kept = [answers(toy, other) for other in others]
    assert sum(kept) >= 0.9 * len(others)


def test_an_answer_is_finished_in_other_words_too(
    toy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "write_at_subjects", lambda _: Written(None, 0))
    monkeypatch.setattr(trust, "ANYWHERE", 1e-3)  # in a toy's 64 dimensions positions are hard to tell apart
    facts, relations = toy_facts(), builtin_catalogue().relations
    new = Edit(id="1", subject=facts[0].subject, relation="capital", new_object=facts[1].object)
    anchors = anchor_prompts(builtin_catalogue(), [], 400, 0)
    made = run(
        toy, [new], blocks="auto", anchors=anchors, texts=RunningText.of(toy, anchors), relations=relations
    )
    words = relations["capital"].training_prompts(new.subject)
    with applied(toy, made.tensors):
        held = [answers(toy, replace(new, prompt=prompt)) for prompt in words]
    assert made.metrics["changed_tensors"] == [] and len(held) > 3
    assert sum(held) >= 0.8 * len(held)


def test_an_answers_neurons_wait_for_their_subjects(toy: LanguageModel) -> None:
    facts, relations = toy_facts(), builtin_catalogue().relations
    new = [
        Edit(id=str(n), subject=facts[n].subject, relation="capital", new_object=facts[n + 5].object)
        for n in range(2)
    ]
    anchors = anchor_prompts(builtin_catalogue(), [], 400, 0)
    texts = RunningText.of(toy, anchors)
    made = run(toy, new, blocks="auto", anchors=anchors, texts=texts, relations=relations)
    found = Neurons.of(made.tensors)
    assert found is not None and made.metrics["neurons"] == 2 and made.metrics["answer_neurons"] > 0
    speaks, at_answer = found.down.any(1), found.blocks > 1
    at_subject = speaks & (found.blocks == 1)
    subjects = set(at_subject.nonzero().flatten().tolist())
    readers = set(((found.blocks == 1) & ~speaks).nonzero().flatten().tolist())
    waited_for = found.cues[at_answer]
    assert len(subjects) == 2 and set(waited_for.flatten().tolist()) <= {-1, *subjects, *readers}
    # A first token's fires where what is asked is read, which says nothing, and waits for the same words.
    together = found.together[at_answer]
    assert together.amax() >= 0 and set(together.tolist()) <= {-1, *readers}
    assert bool((waited_for == together[:, None])[together >= 0].any(1).all())
    assert found.cues[[*readers]].unique().tolist() == found.cues[[*subjects]].unique().tolist()
    # Where their subjects' neurons are silent, so are they: not a bit changes.
    silent = replace(found, gate=torch.where(at_subject[:, None], 0, found.gate))
    ids = torch.tensor([toy.tokenizer(ask(facts[0]))["input_ids"]])
    before = toy.model(input_ids=ids).logits
    with applied(toy, made.tensors):
        assert not torch.equal(toy.model(input_ids=ids).logits, before)
    with applied(toy, silent.tensors()):
        assert torch.equal(toy.model(input_ids=ids).logits, before)


def test_the_ledgers_edits_are_finished_in_their_own_words_alone(llama: LanguageModel) -> None:
    task = task_of(llama, [FRANCE], [ITALY])
    asked = {words.turn: {mistake.edit.id for mistake in _mistakes(task, words)} for words in ROUNDS}
    assert asked == {1: {FRANCE.id}, 0: {FRANCE.id, ITALY.id}}


def opening(gate: Tensor) -> Recognisers:
    """Neurons that fire wherever these rows say anything above nothing."""
    thresholds = torch.tensor([[0.0, -1.0]]).repeat(len(gate), 1)
    return Recognisers(gate, torch.zeros_like(gate), thresholds, torch.ones(len(gate)))


def test_a_neuron_that_fires_at_anything_is_not_trusted(llama: LanguageModel) -> None:
    mlp = gated_mlp(llama, 2)
    assert mlp is not None
    example = answer_example(llama, PROMPT.format("France"), "Rome")
    at = example.positions[0]
    here = [Context(0, example, at, 1.0, bare=True), Context(1, example, at, 1.0, bare=True)]
    own, first, nothing = read_at(llama, 2, mlp, here, here[:1], [])
    one, other = opening(own.entering[:1]), opening(torch.stack([own.entering[0], -own.entering[1]]))
    silent, heard = -own.entering[:1], own.entering[:1]
    alone, both, waiting = (
        Words(own, [], nothing, own, [0.1] * n, [w] * n) for n, w in ((1, False), (2, False), (1, True))
    )
    assert trusted(first, nothing, silent, one, alone).tolist() == [True]
    assert trusted(first, first, silent, one, alone).tolist() == [False]
    assert trusted(first, nothing, heard, one, alone).tolist() == [False]
    assert trusted(first, nothing, heard, one, waiting).tolist() == [True]
    assert trusted(own, nothing, silent, other, both).tolist() == [True, False]
    assert trusted(first, nothing, silent, other, both).tolist() == [
        True,
        False,
    ]  # the second is told nothing


def test_a_neuron_must_not_stand_in_another_answers_way(llama: LanguageModel) -> None:
    mlp = gated_mlp(llama, 2)
    assert mlp is not None
    same = replace(ITALY, id="5", subject="Spain", prompt=PROMPT.format("Spain"), new_object="Rome")
    task = task_of(llama, [FRANCE, ITALY], [same])
    mine = [Mistake(FRANCE, place=0, number=0), Mistake(ITALY, place=0, number=1)]
    holding, mended = plainly_formed(task, mine)
    assert {(edit.id, place) for edit, place, _ in mended} == {(FRANCE.id, 0), (ITALY.id, 0)}
    assert (same, 0, same.prompt) in holding and (FRANCE, 1, FRANCE.prompt) in holding
    formed = [*mended, *holding]
    (at,) = read_at(llama, 2, mlp, [*mended.values(), *holding.values()])

    def told(edit: Edit) -> list[bool]:
        """Of France's and Italy's neurons, both open where this edit's answer begins, and only there."""
        wanted = -torch.ones(len(formed)).double()
        wanted[formed.index((edit, 0, edit.prompt or ""))] = 1
        gate = (torch.linalg.pinv(at.entering.double()) @ wanted).float()
        both = opening(torch.stack([gate, gate]))
        unheard = [[False] * 2 for _ in formed]
        assert in_the_way(at, formed, mine, both, unheard).tolist() == [False, False]
        found: list[bool] = in_the_way(at, formed, mine, both, [[True] * 2 for _ in formed]).tolist()
        return found

    assert told(FRANCE) == [False, True]
    assert told(ITALY) == [True, False]
    assert told(same) == [False, True]  # France is to be answered by "Rome" as well
