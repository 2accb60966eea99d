"""What else is said of an edited subject never asks for what was edited."""

import pytest

from factedit.facts import Edit
from factedit.recognition import bare_words, load_wordings
from factedit.relations import SUBJECT, builtin_catalogue
from factedit.sayings import AKIN, OTHERS, SAYINGS, Sayings, besides
from factedit.wording import edit_prompt

RELATIONS = builtin_catalogue().relations


def families(texts: list[str], subject: str) -> set[str]:
    said = {bare_words(text) for text in texts}
    return {
        name
        for name, wording in load_wordings().items()
        if said & {bare_words(template.replace(SUBJECT, subject)) for template in wording.templates}
    }


@pytest.mark.parametrize(
    ("relation", "new_object", "family"),
    [
        ("inventor", "James Watt", "discoverer"),
        ("painter", "Rubens", "creator"),
        ("made_of", "wood", "material"),
    ],
)
def test_a_relations_own_family_is_not_said_besides(relation: str, new_object: str, family: str) -> None:
    by_relation = Edit("1", "Zyx", new_object, relation=relation)
    by_prompt = Edit("2", "Zyx", new_object, prompt=edit_prompt(by_relation, RELATIONS))
    said: set[str] = set()
    for seed in range(30):
        for edit in (by_relation, by_prompt):
            found = besides([edit], RELATIONS, seed).every()
            assert len(found) >= SAYINGS and all("Zyx" in text for text in found)
            said |= families(found, "Zyx")
    assert family not in said and len(said) > len(load_wordings()) * 0.8


def asked_of(subject: str, relation: str, seed: int = 0) -> Sayings:
    return besides([Edit("1", subject, "Rome", relation=relation)], RELATIONS, seed)


def test_what_subjects_of_its_kind_are_known_for_is_said_in_several_wordings() -> None:
    found = asked_of("Zyxland", "capital")
    worded = {
        name: [prompt for prompt in RELATIONS[name].training_prompts("Zyxland") if prompt in found.akin]
        for name in ("official_language", "currency", "continent")
    }
    assert all(len(prompts) > 2 for prompts in worded.values()), worded
    assert not set(RELATIONS["capital"].training_prompts("Zyxland")) & set(found.every())
    assert len(found.akin) <= AKIN and len(found.others) >= OTHERS
    assert len(set(found.every())) == len(found.akin) + len(found.others)


@pytest.mark.parametrize("seed", range(5))
def test_no_evaluation_template_is_said_and_nothing_that_a_probe_asks(seed: int) -> None:
    catalogue = builtin_catalogue()
    probe = next(fact for fact in catalogue.probe_facts if fact.relation == "official_language")
    found = asked_of(probe.subject, "capital", seed).every()
    for fact in catalogue.probe_facts:
        if fact.subject == probe.subject:
            assert not set(RELATIONS[fact.relation].training_prompts(probe.subject)) & set(found)
    for relation in RELATIONS.values():
        assert not set(relation.evaluation_prompts(probe.subject)) & set(found)


@pytest.mark.parametrize("relation", ["capital", "inventor"])
def test_what_a_neuron_is_tried_on_is_none_of_what_it_is_solved_for(relation: str) -> None:
    found = asked_of("Zyx", relation)
    solved, tried = found.apart()
    assert not set(solved) & set(tried) and sorted([*solved, *tried]) == sorted(found.every())
    assert len(tried) >= len(found.every()) // 5


def test_a_subject_of_no_known_kind_is_asked_anything() -> None:
    found = besides([Edit("1", "Zyx", "Rome", prompt="Zyx frobs the")], RELATIONS, 0)
    assert not found.akin and len(found.others) == SAYINGS
