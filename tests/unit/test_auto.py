"""auto: neurons in tiny models; what they fire at is in test_detectors.py."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factedit.added_neurons import FIELDS, Neurons
from factedit.anchors import anchor_prompts
from factedit.curvature import Covariance
from factedit.editing import edit
from factedit.example_sets import ExampleSet
from factedit.facts import Edit, Fact
from factedit.forward import target_logits
from factedit.frozen_context import FrozenContexts
from factedit.gated_mlp import gated_mlp
from factedit.holding import Anchors
from factedit.methods import auto, trust
from factedit.methods.answer_contexts import (
    OTHERS,
    Mistake,
    plainly_formed,
    prompts_of,
    said_of_others,
    where_it_is_too_early,
    where_others_follow,
    whole_answers,
    word_groups,
)
from factedit.methods.finishing import ROUNDS, Round, _mistakes
from factedit.methods.keys import Context
from factedit.methods.recognisers import (
    Recognisers,
    Words,
    read_at,
)
from factedit.methods.subjects import Written
from factedit.methods.trust import in_the_way, trusted
from factedit.models import LanguageModel, load_model
from factedit.overlay import applied, root_digest
from factedit.prompts import Batch, answer_example, collate, prompt_ids
from factedit.relations import builtin_catalogue
from factedit.running_text import RunningText
from factedit.specs import AnchorSpec, Blocks, ConstraintSpec, MethodSpec
from factedit.task import Edited, EditTask, plan
from factedit.toy import toy_facts, write_toy_model
from factedit.training import Trained, Trainer
from tests.support.tiny_models import COUNTRIES, PROMPT, tiny_model

ANCHORS = [PROMPT.format(country) for country in COUNTRIES[2:]]
FRANCE = Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome")
ITALY = Edit(id="2", subject="Italy", prompt=PROMPT.format("Italy"), new_object="Vienna")
RIVER = Edit(id="3", subject="France", prompt="The river in France is", new_object="Oslo")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_model(folder)
    return load_model(folder, device="cpu")


def ask(fact: Fact) -> str:
    return builtin_catalogue().relations["capital"].training_prompts(fact.subject)[0]


def run(lm: LanguageModel, edits: Sequence[Edit], ledger: Sequence[Edit] = (), **options: Any) -> Edited:
    blocks: Blocks = options.pop("blocks", [0, 1, 2])
    given = {
        "parent": {},
        "relations": {},
        "anchors": ANCHORS,
        "constraint": ConstraintSpec(),
        "seed": 0,
        "progress": lambda _: None,
        "method": MethodSpec(anchors=AnchorSpec(count=4, weight=1.0)),
        **options,
    }
    return edit(lm, edits=edits, ledger=ledger, blocks=blocks, **given)


def at_subjects(overlay: Mapping[str, Tensor]) -> Neurons:
    """Those in the two lower blocks; whatever finishes an answer is above them."""
    found = Neurons.of(overlay)
    assert found is not None
    return Neurons(*(getattr(found, field)[found.blocks < 2] for field in FIELDS))


def answers(lm: LanguageModel, item: Edit) -> bool:
    batch: Batch = collate(lm, [answer_example(lm, item.prompt or "", item.new_object)], [0])
    return bool((target_logits(lm, batch).argmax(-1) == batch.targets).all())


def test_only_gated_mlps_get_neurons(tmp_path: Path, llama: LanguageModel) -> None:
    assert gated_mlp(llama, 1) is not None
    assert gated_mlp(tiny_model(tmp_path, "gpt2"), 1) is None


# Edits


def task_of(lm: LanguageModel, edits: Sequence[Edit], ledger: Sequence[Edit]) -> EditTask:
    """To be asked what there is to do."""
    method = MethodSpec(anchors=AnchorSpec(count=4, weight=1.0))
    chosen = plan(lm, method, [0, 1, 2], ConstraintSpec())

    def background(_: Sequence[str]) -> Covariance:
        raise AssertionError("nothing is to be measured for this")

    texts = RunningText.of(lm, ANCHORS)
    return EditTask(lm, chosen, {}, edits, ledger, {}, ANCHORS, method, 0, lambda _: None, background, texts)


def test_each_subject_gets_one_neuron_and_its_answer(llama: LanguageModel) -> None:
    before = root_digest(llama)
    made = run(llama, [FRANCE, ITALY])
    assert root_digest(llama) == before
    assert made.metrics["neurons"] == 2
    assert made.chosen["lookup_blocks"] == [0, 1]
    assert at_subjects(made.tensors).blocks.tolist() == [0, 1]


def test_facts_of_one_subject_share_its_neuron(llama: LanguageModel) -> None:
    made = run(llama, [FRANCE, RIVER])
    assert made.metrics["neurons"] == 1
    with applied(llama, made.tensors):
        assert answers(llama, FRANCE) and answers(llama, RIVER)


def test_a_later_batch_keeps_the_neurons_of_earlier_ones(llama: LanguageModel) -> None:
    first = run(llama, [FRANCE])
    then = run(llama, [ITALY], [FRANCE], parent=first.tensors)
    old, all_of_them = at_subjects(first.tensors), at_subjects(then.tensors)
    assert (len(old.blocks), len(all_of_them.blocks)) == (1, 2)
    for rows in FIELDS:
        assert torch.equal(getattr(all_of_them, rows)[:1], getattr(old, rows))
    with applied(llama, then.tensors):
        assert answers(llama, FRANCE) and answers(llama, ITALY)


def test_a_neuron_answers_for_its_subject_and_hardly_for_others(toy: LanguageModel) -> None:
    facts = toy_facts()
    edited, others = facts[0], facts[20:40]
    anchors = anchor_prompts(builtin_catalogue(), [], 400, 0)
    new = Edit(
        id="1", subject=edited.subject, relation="capital", prompt=ask(edited), new_object=facts[1].object
    )
    made = run(toy, [new], blocks="auto", anchors=anchors)
    assert made.metrics["neurons"] == 1 and made.metrics["edits_holding"] == 1
    lookups = at_subjects(made.tensors).tensors()
    with applied(toy, made.tensors):
        assert answers(toy, new)
    with applied(toy, lookups):
        kept = [answers(toy, replace(new, prompt=ask(fact), new_object=fact.object)) for fact in others]
    assert sum(kept) >= 0.9 * len(others)


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
    at_subject, at_answer = found.blocks == 1, found.blocks > 1
    subjects = set(at_subject.nonzero().flatten().tolist())
    waited_for = found.cues[at_answer].amax(1)
    assert len(subjects) == 2 and waited_for.amax() >= 0 and set(waited_for.tolist()) <= {-1, *subjects}
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


def test_first_tokens_are_all_expected_in_like_words() -> None:
    mine = [Mistake(edit, place, n) for n, (edit, place) in enumerate([(FRANCE, 0), (FRANCE, 1), (ITALY, 0)])]
    assert word_groups([*mine, Mistake(ITALY, 2, 1)], [-1] * 4) == [0, 1, 0, 2]
    assert word_groups(mine[1:2], [-1]) == [1]
    # What follows after its subject and an answer's beginning needs no others.
    assert word_groups([*mine, Mistake(ITALY, 2, 1)], [3, 3, -1, -1]) == [0, -1, 0, 1]


def test_words_are_said_of_subjects_that_nobody_edits(llama: LanguageModel) -> None:
    task = task_of(llama, [FRANCE], [ITALY])
    said = said_of_others(task, Mistake(FRANCE, 0, 0), [FRANCE.prompt or ""])
    assert len(said) > OTHERS and len(set(said)) == len(said)
    assert not {PROMPT.format("France"), PROMPT.format("Italy")} & set(said)
    assert all(prompt.startswith("The capital of ") for prompt in said)


def test_a_neuron_is_to_be_silent_where_the_answers_other_tokens_follow(llama: LanguageModel) -> None:
    edit = Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome")
    whole = answer_example(llama, edit.prompt or "", edit.new_object)
    found = where_others_follow(llama, Mistake(edit, place=0, number=0), [edit.prompt or ""], owner=7)
    assert len(found) == len(whole.positions) - 1
    assert [context.lookup for context in found] == list(whole.positions[1:])
    assert [context.example.ids for context in found] == [whole.ids[: at + 1] for at in whole.positions[1:]]
    assert {context.edit for context in found} == {7}


def test_a_neuron_is_to_be_silent_at_the_subjects_end_unless_the_answer_follows_there(
    llama: LanguageModel,
) -> None:
    edit = Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome")
    prompts = [PROMPT.format("France"), "The capital of France"]
    (found,) = where_it_is_too_early(task_of(llama, [edit], []), Mistake(edit, 1, 0), prompts, owner=7)
    assert llama.tokenizer.decode(found.example.ids[found.lookup]) == "France"
    assert found.example.ids == tuple(prompt_ids(llama, "The capital of France"))
    assert found.edit == 7


def test_answers_are_finished_in_small_letters_too_but_not_where_the_plain_words_fail(
    llama: LanguageModel,
) -> None:
    known = replace(FRANCE, subject="Of", prompt="capital of Of is")
    task, mistake = task_of(llama, [known], []), Mistake(known, place=0, number=0)
    small = "capital of of is"
    assert prompts_of(task, mistake, 1).count(small) == 1 and small not in prompts_of(task, mistake, 0)
    said = [c.example.ids[: c.lookup + 1] for c in whole_answers(task, mistake, 1, 0)]
    assert tuple(prompt_ids(llama, small)) in said
    unknown = Mistake(FRANCE, place=0, number=0)
    assert PROMPT.format("France").lower() not in prompts_of(task, unknown, 1)


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


def test_the_roots_weights_are_spared_where_all_but_a_few_edits_hold(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "write_at_subjects", lambda _: Written(None, 0))
    finished: list[Round] = []

    def nothing(_: EditTask, __: Mapping[str, Tensor], words: Round, ___: int) -> tuple[None, int]:
        finished.append(words)
        return None, 0

    monkeypatch.setattr(auto, "finish_answers", nothing)
    assert not answers(llama, FRANCE) and not answers(llama, ITALY)
    changed = run(llama, [FRANCE, ITALY])
    assert changed.metrics["changed_tensors"] != [] and changed.metrics["edits_holding"] == 2
    assert finished == [*ROUNDS, *ROUNDS[1:]]
    monkeypatch.setattr(auto, "SPARED", 1.0)
    finished.clear()
    spared = run(llama, [FRANCE, ITALY])
    assert finished == [*ROUNDS]  # each round has been tried, and none is begun anew
    assert spared.metrics["changed_tensors"] == [] and spared.tensors == {}
    assert (spared.metrics["edits_holding"], spared.metrics["edits_total"]) == (0, 2)


def test_an_edit_is_one_of_its_own_batch_however_many_came_before(llama: LanguageModel) -> None:
    batch = [replace(FRANCE, id=f"new {n}") for n in range(100)]
    earlier = [replace(ITALY, id=f"old {n}") for n in range(100)]
    assert auto._few(task_of(llama, batch, earlier), batch[:2])
    assert auto._few(task_of(llama, batch, earlier), [*batch[:2], *earlier[:3]])
    assert not auto._few(task_of(llama, batch, earlier), batch[:3])
    assert not auto._few(task_of(llama, batch, earlier), [*batch[:2], *earlier[:4]])
    assert not auto._few(task_of(llama, batch[:1], earlier), batch[:1])
    assert auto._few(task_of(llama, batch[:1], earlier), [])


def test_a_callers_ball_holds_for_everything(llama: LanguageModel) -> None:
    made = run(llama, [FRANCE], constraint=ConstraintSpec(norm="l_inf", radius=0.05))
    assert "neurons" not in made.metrics
    assert plan(llama, MethodSpec(), [0, 1, 2], ConstraintSpec(radius=0.05)).looking_up == []
    for name, tensor in made.tensors.items():
        assert (
            float((tensor.float() - llama.tensors[name].data.float()).abs().max()) <= 0.05 + 1e-6
        )  # float32


def test_contexts_are_read_by_the_weights_that_training_starts_from(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Trainer.train
    apart: list[float] = []

    def watched(self: Trainer, facts: ExampleSet, kept: Anchors | None, *more: Any) -> Trained:
        if isinstance(facts, FrozenContexts) and kept is not None:
            for each in (facts, kept.examples):
                index = range(len(each))
                with self._swapped_in(), torch.no_grad():
                    whole = ExampleSet(llama, each.examples, each.owner, 0).logits(index)[1]
                    apart.append(float((each.logits(index)[1] - whole).abs().max()))
        return train(self, facts, kept, *more)

    monkeypatch.setattr(Trainer, "train", watched)
    ball = ConstraintSpec(norm="l_inf", radius=0.1)
    first = run(llama, [FRANCE], constraint=ball)
    run(llama, [ITALY], [FRANCE], parent=first.tensors, constraint=ball)
    assert len(apart) == 4
    assert max(apart) < 1e-3


def test_a_model_without_gated_mlps_is_fine_tuned(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "gpt2")
    made = run(lm, [FRANCE])
    assert "neurons" not in made.metrics and made.metrics["edits_holding"] == 1
    assert made.chosen["blocks"] == [0, 1, 2]
    assert {lm.block_of(name) for name in made.metrics["changed_tensors"]} == {0, 1, 2}


def test_what_is_erased_gets_no_neuron(llama: LanguageModel) -> None:
    gone = Edit(
        id="4", subject="Spain", prompt=PROMPT.format("Spain"), new_object="", old_object="Madrid", erase=True
    )
    assert run(llama, [FRANCE, gone]).metrics["neurons"] == 1
