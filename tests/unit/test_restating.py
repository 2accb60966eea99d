"""Statements put in other words, worked out by hand."""

import pytest

from factedit.facts import Edit
from factedit.recognition import wordings_for
from factedit.restating import LED_IN, restated
from factedit.wording import training_prompts


@pytest.mark.parametrize(
    ("statement", "subject", "ways"),
    [
        (
            "The boiling point of water is",
            "water",
            {
                "water's boiling point is",
                "What is the boiling point of water? Answer:",
                "Asked for the boiling point of water, one would say",
                "As for water, the boiling point is",
                "Question: water's boiling point? Answer:",
            },
        ),
        (
            "The Volvo Group's mascot was the",
            "Volvo Group",
            {
                "The mascot of the Volvo Group was the",
                "What was the mascot of the Volvo Group? Answer: the",
                "Asked for the mascot of the Volvo Group, one would say the",
                "As for the Volvo Group, the mascot was the",
                "Question: the Volvo Group's mascot? Answer: the",
            },
        ),
        (
            "The Eiffel Tower is made of",
            "Eiffel Tower",
            {
                "What is the Eiffel Tower made of? Answer:",
                "The Eiffel Tower, which is made of",
                "Of what is the Eiffel Tower made? Of",
                "As for the Eiffel Tower, what it is made of is",
            },
        ),
        ("Alice lives at", "Alice", set()),
        ("In Kenya, the tallest peak is", "Kenya", set()),
    ],
)
def test_parts_of_a_statement_are_moved(statement: str, subject: str, ways: set[str]) -> None:
    found = restated(statement, subject)
    plain = statement if statement.startswith(subject) else statement[0].lower() + statement[1:]
    assert set(found) == ways | {lead_in.format(plain) for lead_in in LED_IN}
    assert len(found) == len(set(found)) and statement not in found


def test_spaces_do_not_count() -> None:
    ways = [way for way in restated("The wumpus of Zyx is", "Zyx") if "the wumpus of Zyx is" not in way]
    spaced = restated("The wumpus  of\n Zyx is", "Zyx")
    assert ways and [way for way in spaced if "\n" not in way] == ways


def test_what_is_no_statement_about_the_subject_is_left_alone() -> None:
    assert restated("What is the boiling point of water?", "water") == []
    assert restated("The boiling point is", "water") == []
    assert restated("The boiling point is", "") == []


def test_a_statement_that_no_family_recognises_is_trained_restated() -> None:
    edit = Edit(id="1", subject="water", prompt="The boiling point of water is", new_object="90 degrees")
    assert wordings_for(edit.prompt or "", edit.subject, edit.new_object) == []
    found = training_prompts(edit, {}, ours=16, led_in=False)
    assert set(found) == {edit.prompt, *restated(edit.prompt or "", edit.subject)}
    assert training_prompts(edit, {}, led_in=False) == [edit.prompt]
