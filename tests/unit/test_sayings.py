"""What else is said of an edited subject never asks for what was edited."""

import pytest

from factedit.facts import Edit
from factedit.recognition import bare_words, load_wordings
from factedit.relations import SUBJECT, builtin_catalogue
from factedit.sayings import SAYINGS, besides
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
            found = besides([edit], RELATIONS, seed)
            assert len(found) == SAYINGS and all("Zyx" in text for text in found)
            said |= families(found, "Zyx")
    assert family not in said and len(said) > len(load_wordings()) * 0.8
