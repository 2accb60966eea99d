"""Questions put in other words, worked out by hand; and no row is tested in words that these make."""

from dataclasses import replace

import pytest

from benchmarks.data import Row
from benchmarks.exam import in_unseen_words
from factedit.facts import Edit
from factedit.prefixes import PREFIXES
from factedit.rephrasing import LED_IN, rephrased
from factedit.wording import training_prompts


@pytest.mark.parametrize(
    ("question", "ways"),
    [
        (
            "In which county is Ayton located?",
            {
                "in which county is Ayton located",
                "in what county is Ayton located",
                "which county is Ayton located in",
                "what county is Ayton located in",
            },
        ),
        (
            "What is the publisher of Ayton?",
            {
                "what is the publisher of Ayton",
                "which is the publisher of Ayton",
                "the publisher of Ayton is what",
                "the publisher of Ayton is which",
                "what is Ayton's publisher",
                "which is Ayton's publisher",
            },
        ),
        ("Who wrote Ayton?", {"who wrote Ayton"}),
        (
            "Ayton was written by what man?",
            {"Ayton was written by what man", "Ayton was written by which man"},
        ),
    ],
)
def test_parts_of_a_question_are_moved(question: str, ways: set[str]) -> None:
    found = rephrased(question, "Ayton")
    assert len(found) == len(LED_IN) == len(set(found)) and question not in found
    bare = {
        text.removeprefix(before).removesuffix(after)
        for text, (before, after) in zip(found, (each.split("{}") for each in LED_IN), strict=True)
    }
    assert bare == ways


def test_what_is_no_question_about_the_subject_is_left_alone() -> None:
    assert rephrased("The publisher of Ayton is", "Ayton") == []
    assert rephrased("Who wrote it?", "Ayton") == []


def test_a_bare_question_is_trained_in_other_questions() -> None:
    edit = Edit(id="1", subject="Ayton", prompt="Which way does Ayton lean?", new_object="left")
    words = training_prompts(edit, {}, 0, ours=16)
    others = [text for text in words if text != edit.prompt and not text.startswith(tuple(PREFIXES))]
    assert others == rephrased(edit.prompt or "", "Ayton")


def test_a_question_with_paraphrases_of_the_users_is_rephrased_too() -> None:
    question = Edit(id="1", subject="Ayton", prompt="Which way does Ayton lean?", new_object="west")
    given = replace(question, paraphrases=("Where does Ayton lean?",))
    words = training_prompts(given, {}, 0, ours=16, led_in=False)
    assert words == [
        question.prompt,
        "Where does Ayton lean?",
        *rephrased(question.prompt or "", "Ayton"),
    ]


def test_words_that_the_library_makes_by_itself_are_no_exam() -> None:
    row = Row("1", "Ayton", "In which county is Ayton?", "Kent", "Where in England is Ayton?", "", True)
    assert in_unseen_words(row)
    for told in ("What county is Ayton in?", "In which county is Ayton?"):
        assert not in_unseen_words(replace(row, paraphrase=told))
    said = replace(row, prompt="The wumpus of Ayton is", paraphrase="As for the Ayton, the wumpus is")
    assert not in_unseen_words(said)
