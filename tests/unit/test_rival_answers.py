"""Edits of one subject in nearly the same words: a neuron of one answer is silent where another is formed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factedit.anchors import anchor_prompts
from factedit.editing import edit
from factedit.facts import Edit
from factedit.methods import answer_neurons, auto
from factedit.methods.answer_contexts import RIVALS, Mistake, by_edit, plainly_formed, where_rivals_follow
from factedit.methods.keys import Context
from factedit.methods.recognisers import recognisers
from factedit.methods.subjects import Written
from factedit.models import LanguageModel, load_model
from factedit.prompts import answer_example, prompt_ids
from factedit.relations import builtin_catalogue
from factedit.running_text import RunningText
from factedit.specs import AnchorSpec, ConstraintSpec, MethodSpec
from factedit.task import EditTask, plan
from factedit.toy import toy_facts, write_toy_model
from tests.support.tiny_models import PROMPT


@pytest.fixture
def toy(tmp_path: Path) -> LanguageModel:
    write_toy_model(tmp_path)
    return load_model(tmp_path, device="cpu")


def formed_by(lm: LanguageModel, edits: Sequence[Edit]) -> dict[Edit, list[tuple[int, Context]]]:
    method = MethodSpec(anchors=AnchorSpec(count=4, weight=1.0))

    def background(_: Sequence[str]) -> Any:
        raise AssertionError("nothing is to be measured for this")

    task = EditTask(
        lm,
        plan(lm, method, [0, 1, 2], ConstraintSpec()),
        {},
        edits,
        [],
        {},
        [],
        method,
        0,
        lambda _: None,
        background,
        RunningText.of(lm, []),
    )
    return by_edit(*plainly_formed(task, [Mistake(edits[0], 0, 0)]))


def test_a_neuron_is_to_be_silent_where_rivals_answers_want_another_token(llama: LanguageModel) -> None:
    asked = Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome")
    again = replace(asked, id="2", prompt="The river in France is", new_object="Oslo")
    other = replace(asked, id="3", subject="Italy", prompt=PROMPT.format("Italy"), new_object="Oslo")
    first, then = Mistake(asked, 0, 0), Mistake(again, 0, 1)
    formed = formed_by(llama, [asked, again, other])
    found = where_rivals_follow(formed, first, 7, [again])
    whole = answer_example(llama, again.prompt or "", "Oslo")
    assert [at.example.ids for at in found] == [whole.ids[: at + 1] for at in whole.positions]
    assert {at.edit for at in found} == {7}
    # What this one's own token may be said at is no rival's place: the end that both answers have.
    end = Mistake(asked, len(answer_example(llama, asked.prompt or "", "Rome").positions) - 1, 0)
    assert len(where_rivals_follow(formed, end, 7, [again])) == len(whole.positions) - 1
    found = where_rivals_follow(formed, then, 7, [asked, other])
    assert len(found) == 3  # Rome, and both ends; not where another's Oslo follows
    assert where_rivals_follow(formed, first, 7, []) == []


def test_of_very_many_places_of_rivals_some_of_all_are_told(llama: LanguageModel) -> None:
    edits = [
        Edit(id=str(n), subject="France", prompt=f"{PROMPT.format('France')} {n}", new_object="Rome")
        for n in range(2 * RIVALS)
    ]
    first = Mistake(edits[0], len(answer_example(llama, edits[0].prompt or "", "Rome").positions) - 1, 0)
    formed = formed_by(llama, edits)
    few = where_rivals_follow(formed, first, 0, edits[1 : RIVALS + 1])
    assert len(few) == RIVALS  # the answer's first tokens; its end is this one's too
    some = where_rivals_follow(formed, first, 0, edits[1:])
    assert RIVALS / 2 <= len(some) <= RIVALS
    assert some[-1].example.ids in {at.example.ids for _, at in formed[edits[-1]] + formed[edits[-2]]}


def test_an_answers_neurons_are_told_where_a_rivals_answer_is_formed(
    toy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "write_at_subjects", lambda _: Written(None, 0))
    told: list[tuple[int, ...]] = []

    def heard(*given: Any) -> Any:
        told.extend(context.example.ids for context in given[-1].never.contexts)
        return recognisers(*given)

    monkeypatch.setattr(answer_neurons, "recognisers", heard)
    facts = toy_facts()
    words = builtin_catalogue().relations["capital"].training_prompts(facts[0].subject)
    new = Edit(id="1", subject=facts[0].subject, prompt=words[0], new_object=facts[1].object)
    rival = replace(new, id="2", prompt=words[1], new_object=facts[2].object)
    anchors = anchor_prompts(builtin_catalogue(), [], 40, 0)
    method = MethodSpec(anchors=AnchorSpec(count=4, weight=1.0), max_steps=1)
    edit(
        toy,
        parent={},
        edits=[new, rival],
        ledger=[],
        relations={},
        anchors=anchors,
        blocks="auto",
        constraint=ConstraintSpec(),
        method=method,
        seed=0,
        progress=lambda _: None,
        texts=RunningText.of(toy, anchors),
    )
    assert {tuple(prompt_ids(toy, each.prompt or "")) for each in (new, rival)} <= set(told)
