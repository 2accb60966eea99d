"""What follows from an edit: asked in words that describe the new object, where the root knows the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import two_hop as module
from benchmarks.data import Row
from benchmarks.two_hop import DESCRIBED, KINDS, THEN, hops, two_hop
from factedit.facts import Fact
from factedit.generation import Generation
from factedit.recognition import load_wordings
from factedit.relations import builtin_catalogue


def row(subject: str, prompt: str, new_object: str) -> Row:
    return Row(subject, subject, prompt, new_object, paraphrase="", locality="", question=False)


MUSEUM = row("Fram Museum", "Fram Museum is located in the country of", "Japan")
SINGER = row("Anna Lee", "Anna Lee, a citizen of", "France")
SPEAKER = row("Anna Lee", "The mother tongue of Anna Lee is", "French")
NOWHERE = row("Fram Museum", "Fram Museum is located in the country of", "Atlantis")


def test_each_hop_describes_the_new_object_in_the_words_that_it_is_asked_in_itself() -> None:
    museum, singer = hops([MUSEUM, SPEAKER, SINGER, NOWHERE], builtin_catalogue())
    assert museum.prompt == "The country in which Fram Museum is located, whose capital city is"
    assert museum.direct == "Japan, whose capital city is" and museum.answers[0] == "Tokyo"
    assert singer.prompt.startswith("The country of which Anna Lee is a citizen,")
    assert singer.answers[0] == "Paris"


def test_the_words_are_evaluation_templates_and_the_families_are_known() -> None:
    relations = builtin_catalogue().relations
    assert all(template in relations[name].evaluation_templates for name, template in THEN.items())
    assert set(DESCRIBED) <= set(load_wordings()) and set(KINDS) <= set(relations)


def test_a_second_fact_that_is_edited_or_of_two_places_is_not_asked() -> None:
    japan = row("Japan", "The capital of Japan is", "Oslo")
    assert hops([MUSEUM, japan], builtin_catalogue()) == []
    state = replace(MUSEUM, new_object="Georgia")
    fact = Fact("Georgia", "state_capital", "Atlanta")
    catalogue = builtin_catalogue()
    (asked,) = hops([state], replace(catalogue, facts=tuple(f for f in catalogue.facts if f != fact)))
    assert asked.answers[0] == "Tbilisi"
    assert hops([state], replace(catalogue, facts=(*catalogue.facts, fact))) == []


def test_only_what_the_root_knows_is_asked_and_the_edited_model_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {"Japan, whose capital city is": " Tokyo", "France, whose capital city is": " Lyon"}
    inside: list[bool] = []

    @contextmanager
    def applied(*_: Any) -> Iterator[None]:
        inside.append(True)
        yield
        inside.clear()

    class Answering:
        lm = None

        def root_answers(self, prompts: list[str], _: int) -> list[str]:
            assert not inside
            return [said.get(prompt, " Oslo") for prompt in prompts]

        def ask(self, prompts: list[str], _: int, before: list[str]) -> list[Generation]:
            assert inside and before == [" Oslo"]
            assert prompts == [hops([MUSEUM], builtin_catalogue())[0].prompt]
            return [Generation(" Tokyo, a city", n_tokens=4, stopped=False)]

    monkeypatch.setattr(module, "applied", applied)
    assert two_hop(Answering(), {}, [MUSEUM, SINGER]) == ([1, 1], [0, 1])  # type: ignore[arg-type]
    assert two_hop(Answering(), {}, [SPEAKER]) == ([0, 0], [0, 0])  # type: ignore[arg-type]
