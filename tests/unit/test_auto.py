"""auto: a neuron for each subject, and when weights move instead."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factedit.added_neurons import FIELDS, Neurons
from factedit.anchors import anchor_prompts
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.frozen_context import FrozenContexts
from factedit.gated_mlp import gated_mlp
from factedit.holding import Anchors
from factedit.methods import auto
from factedit.methods.answer_contexts import Round
from factedit.methods.finishing import ROUNDS
from factedit.methods.subjects import Written
from factedit.models import LanguageModel
from factedit.overlay import applied, root_digest
from factedit.relations import builtin_catalogue
from factedit.specs import ConstraintSpec, MethodSpec
from factedit.task import EditTask, plan
from factedit.toy import toy_facts
from factedit.training import Trained, Trainer
from tests.support.auto_edits import FRANCE, ITALY, answers, ask, run, task_of
from tests.support.tiny_models import PROMPT, tiny_model

RIVER = Edit(id="3", subject="France", prompt="The river in France is", new_object="Oslo")


def at_subjects(overlay: Mapping[str, Tensor]) -> Neurons:
    """Those in the two lower blocks; whatever finishes an answer is above them."""
    found = Neurons.of(overlay)
    assert found is not None
    return Neurons(*(getattr(found, field)[found.blocks < 2] for field in FIELDS))


def test_only_gated_mlps_get_neurons(tmp_path: Path, llama: LanguageModel) -> None:
    assert gated_mlp(llama, 1) is not None
    assert gated_mlp(tiny_model(tmp_path, "gpt2"), 1) is None


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
