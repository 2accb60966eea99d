"""in_context: facts that stand before the prompts that name their subjects."""

import pytest
import torch

from factedit.context import NAME, Note, Notes
from factedit.generation import next_tokens, rank
from factedit.models import LanguageModel
from factedit.overlay import applied
from factedit.prompts import answer_tokens
from factedit.task import Edited
from tests.support.memories import CONTEXT, FIRST, OTHERS, asked, edited, logits, texts, the_toy
from tests.support.tiny_models import CITIES

lm = pytest.fixture(the_toy, scope="module")


def note(subject: str, prompt: str, answer: str) -> Note:
    return Note(subject, None, prompt, answer)


@pytest.mark.parametrize(
    ("prompt", "called"),
    [
        ("Where is France?", True),
        ("FRANCE is where", True),
        ("france", True),
        ("Anatole-France's books", True),
        ("Franceville lies in", False),
        ("In lafrance", False),
        ("Spain is", False),
    ],
)
def test_a_subject_is_found_as_whole_words_in_any_case(prompt: str, called: bool) -> None:
    notes = Notes([note("France", "The capital of France is", "Rome")])
    assert notes(prompt) == (f"The capital of France is Rome. {prompt}" if called else prompt)


def test_a_subject_with_signs_or_several_words_is_found() -> None:
    notes = Notes([note("C++", "C++ was made by", "Ada"), note("New York", "New York lies in", "Peru")])
    assert notes("Who made C++?") == "C++ was made by Ada. Who made C++?"
    assert notes("The new york of old") == "New York lies in Peru. The new york of old"
    assert notes("New Yorkers") == "New Yorkers"
    assert notes("C++: New York") == "C++ was made by Ada. New York lies in Peru. C++: New York"


def test_facts_stand_before_the_prompt_wherever_the_model_reads_it(any_lm: LanguageModel) -> None:
    lm = any_lm
    prompt = FIRST[0].prompt or ""
    whole = f"{prompt} Rome. {prompt}"
    expected = (
        texts(lm, [whole]),
        rank(lm, [whole], [CITIES]),
        next_tokens(lm, [whole], 3),
        logits(lm, [whole]),
    )
    others = texts(lm, OTHERS), logits(lm, OTHERS)
    result = edited(lm, method=CONTEXT)
    assert set(result.tensors) == {NAME}
    with applied(lm, result.tensors):
        assert (texts(lm, [prompt]), rank(lm, [prompt], [CITIES]), next_tokens(lm, [prompt], 3)) == expected[
            :3
        ]
        assert torch.equal(logits(lm, [prompt]), expected[3])
        assert texts(lm, OTHERS) == others[0]
        assert torch.equal(logits(lm, OTHERS), others[1])
    assert texts(lm, [whole]) == expected[0]


def test_an_answer_that_names_a_subject_calls_up_nothing(lm: LanguageModel) -> None:
    overlay = edited(lm, method=CONTEXT).tensors
    own = answer_tokens(lm, OTHERS[0], "Italy")
    with applied(lm, overlay):
        assert answer_tokens(lm, OTHERS[0], "Italy") == own
        assert answer_tokens(lm, FIRST[0].prompt or "", "Italy") == own


def test_later_notes_join_earlier_ones_and_replace_those_on_the_same_fact(lm: LanguageModel) -> None:
    def sentences(result: Edited) -> list[str]:
        notes = Notes.of(result.tensors)
        assert notes is not None
        return [one.sentence for one in notes.notes]

    first = edited(lm, method=CONTEXT)
    again = [asked("9", "France", "Oslo")]
    second = edited(lm, again, CONTEXT, parent=first.tensors, ledger=FIRST[1:])
    assert sentences(second) == ["The capital of Italy is New Delhi.", "The capital of France is Oslo."]
    assert sentences(edited(lm, (), CONTEXT, ledger=FIRST)) == sentences(first)
