"""Where the neurons of an answer are to fire, and where they are to be silent."""

from dataclasses import replace

from factedit.facts import Edit
from factedit.methods.answer_contexts import (
    OTHERS,
    Mistake,
    prompts_of,
    said_of_others,
    where_it_is_too_early,
    where_others_follow,
    whole_answers,
    word_groups,
)
from factedit.models import LanguageModel
from factedit.prompts import answer_example, prompt_ids
from tests.support.auto_edits import FRANCE, ITALY, task_of
from tests.support.tiny_models import PROMPT


def test_first_tokens_are_all_expected_in_like_words() -> None:
    mine = [Mistake(edit, place, n) for n, (edit, place) in enumerate([(FRANCE, 0), (FRANCE, 1), (ITALY, 0)])]
    assert word_groups([*mine, Mistake(ITALY, 2, 1)], [-1] * 4) == [0, 1, 0, 2]
    assert word_groups(mine[1:2], [-1]) == [1]
    # What follows after its subject and an answer's beginning needs no others.
    assert word_groups([*mine, Mistake(ITALY, 2, 1)], [3, 3, -1, -1]) == [0, -1, 0, 1]


def test_words_are_said_of_subjects_that_nobody_edits(llama: LanguageModel) -> None:
    task = task_of(llama, [FRANCE], [ITALY])
    said = said_of_others(task, Mistake(FRANCE, 0, 0), [FRANCE.prompt or ""])
    assert len(said) > OTHERS and len(set(said)) == len(said)
    assert not {PROMPT.format("France"), PROMPT.format("Italy")} & set(said)
    assert all(prompt.startswith("The capital of ") for prompt in said)


def test_a_neuron_is_to_be_silent_where_the_answers_other_tokens_follow(llama: LanguageModel) -> None:
    edit = Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome")
    whole = answer_example(llama, edit.prompt or "", edit.new_object)
    found = where_others_follow(llama, Mistake(edit, place=0, number=0), [edit.prompt or ""], owner=7)
    assert len(found) == len(whole.positions) - 1
    assert [context.lookup for context in found] == list(whole.positions[1:])
    assert [context.example.ids for context in found] == [whole.ids[: at + 1] for at in whole.positions[1:]]
    assert {context.edit for context in found} == {7}


def test_a_neuron_is_to_be_silent_at_the_subjects_end_unless_the_answer_follows_there(
    llama: LanguageModel,
) -> None:
    edit = Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome")
    prompts = [PROMPT.format("France"), "The capital of France"]
    (found,) = where_it_is_too_early(task_of(llama, [edit], []), Mistake(edit, 1, 0), prompts, owner=7)
    assert llama.tokenizer.decode(found.example.ids[found.lookup]) == "France"
    assert found.example.ids == tuple(prompt_ids(llama, "The capital of France"))
    assert found.edit == 7


def test_answers_are_finished_in_small_letters_too_but_not_where_the_plain_words_fail(
    llama: LanguageModel,
) -> None:
    known = replace(FRANCE, subject="Of", prompt="capital of Of is")
    task, mistake = task_of(llama, [known], []), Mistake(known, place=0, number=0)
    small = "capital of of is"
    assert prompts_of(task, mistake, 1).count(small) == 1 and small not in prompts_of(task, mistake, 0)
    said = [c.example.ids[: c.lookup + 1] for c in whole_answers(task, mistake, 1, 0)]
    assert tuple(prompt_ids(llama, small)) in said
    unknown = Mistake(FRANCE, place=0, number=0)
    assert PROMPT.format("France").lower() not in prompts_of(task, unknown, 1)
