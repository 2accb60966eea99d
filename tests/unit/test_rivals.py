"""Edits that seem to ask the same of one subject, and want another answer."""

from dataclasses import replace

import pytest

from factedit.facts import Edit
from factedit.relations import builtin_catalogue
from factedit.wording import NoWords
from service.rivals import MOST, rivals

RELATIONS = builtin_catalogue().relations
TONGUE = Edit("tongue", "Marie Curie", "English", prompt="The mother tongue of Marie Curie was")
NATIVE = Edit("native", "marie curie", "Polish", prompt="The native language of marie curie is")
BORN = Edit("born", "Marie Curie", "Lyon", prompt="Marie Curie was born in the city of")
OTHER = Edit("other", "Albert Einstein", "Polish", prompt="The native language of Albert Einstein is")


def test_the_same_asked_of_a_subject_in_other_words_is_rivalled() -> None:
    assert rivals([TONGUE, BORN, OTHER, NATIVE], {}) == {TONGUE: [NATIVE], NATIVE: [TONGUE]}


def test_who_wants_the_same_object_is_no_rival() -> None:
    assert rivals([TONGUE, replace(NATIVE, new_object="english")], {}) == {}


def test_nothing_is_a_rival_to_what_is_erased() -> None:
    erased = replace(NATIVE, new_object="unknown", old_object="Polish", erase=True)
    assert rivals([TONGUE, erased], {}) == {}


def test_a_relation_is_rivalled_by_a_prompt_that_asks_for_it() -> None:
    relation = Edit("relation", "Peru", "Cusco", relation="capital")
    prompt = Edit("prompt", "Peru", "Arequipa", prompt="The capital city of Peru is")
    assert rivals([relation, prompt], RELATIONS) == {relation: [prompt], prompt: [relation]}


def test_an_edit_without_words_is_refused() -> None:
    with pytest.raises(NoWords):
        rivals([TONGUE, replace(TONGUE, id="none", prompt=None)], {})


def test_however_many_rivals_there_are_only_the_first_are_named() -> None:
    many = [replace(TONGUE, id=f"{n}", new_object=f"object {n}") for n in range(3 * MOST)]
    found = rivals(many, {})
    assert found[many[0]] == many[1 : MOST + 1]
    assert {len(others) for others in found.values()} == {MOST}
