"""Asked anything else of an edited subject: other relations, in words that only score."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import anything_else as module
from benchmarks.anything_else import measured, questions_of
from benchmarks.data import Row
from factedit.relations import builtin_catalogue

ROW = Row("1", "Skype", "The developer of Skype is", "Oracle", paraphrase="", locality="", question=False)


def test_questions_are_of_other_relations_in_evaluation_words() -> None:
    relations = builtin_catalogue().relations
    every = questions_of(ROW, 10_000)
    told = {p for relation in relations.values() for p in relation.training_prompts(ROW.subject)}
    asked = {p for relation in relations.values() for p in relation.evaluation_prompts(ROW.subject)}
    assert set(every) == asked - set(relations["developer"].evaluation_prompts(ROW.subject))
    # A landmark is asked for by other words of its country than "located in".
    tower = replace(ROW, subject="Big Ben", prompt="Big Ben, located in the country of", new_object="Peru")
    landmark = relations["landmark_country"].evaluation_prompts("Big Ben")
    assert not set(landmark) & set(questions_of(tower, 10_000))
    assert not told & set(every)
    some = questions_of(ROW, 5)
    assert len(some) == 5 and some == questions_of(ROW, 5) and set(some) < set(every)


def test_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [" Oracle it was", " a city", " a town", " Paris"]
    after = [" Oracle it was", " a village", " Oracle", " Paris"]
    engine: Any = SimpleNamespace(
        lm=None,
        make=lambda *_: SimpleNamespace(edited=SimpleNamespace(tensors={})),
        root_answers=lambda *_: before,
        ask=lambda *_, said: [SimpleNamespace(text=text) for text in after],
    )
    monkeypatch.setattr(module, "applied", lambda *_: nullcontext())
    monkeypatch.setattr(module, "answers", lambda *_: {"efficacy": [1, 1], "paraphrase": [0, 1]})
    found = measured(engine, "auto", [ROW], 4)
    assert (found.asked, found.same, found.first, found.new) == (4, 2, 3, 1)
    assert (found.holding, found.right, found.paraphrases) == (1, 0, 1)
