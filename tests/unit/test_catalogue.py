"""The catalogue keeps what the whole evaluation rests on: what is tested is never trained on."""

from collections import Counter
from dataclasses import replace

import pytest

from factedit.anchors import BACKGROUND, anchor_prompts, background_of, background_prompts, contrasts, draw
from factedit.facts import Edit
from factedit.prefixes import PREFIXES
from factedit.recognition import bare_words
from factedit.relations import Relation, builtin_catalogue, is_probe, nearest, template_problem
from factedit.restating import restated
from factedit.wording import (
    FEW,
    FEW_QUESTIONS,
    WORDINGS,
    NoWords,
    edit_prompt,
    evaluation_prompts,
    ours_each,
    training_prompts,
)

CATALOGUE = builtin_catalogue()
RELATIONS = CATALOGUE.relations
EDITS = [
    Edit("1", "France", "Rome", relation="capital"),
    Edit("2", "Burundi", "Gitega", relation="capital", prompt="Burundi is governed from"),
]


def folded(texts: tuple[str, ...]) -> set[str]:
    return {" ".join(text.casefold().split()) for text in texts}


# The catalogue


def test_it_is_as_large_as_is_said() -> None:
    assert len(RELATIONS) >= 30
    assert len(CATALOGUE.facts) >= 1500


@pytest.mark.parametrize("name", sorted(RELATIONS))
def test_a_relations_training_and_evaluation_templates_never_mix(name: str) -> None:
    relation = RELATIONS[name]
    training, evaluation = folded(relation.training_templates), folded(relation.evaluation_templates)
    assert len(training) == len(relation.training_templates) >= 4
    assert len(evaluation) == len(relation.evaluation_templates) >= 3
    assert not training & evaluation
    assert not [t for t in (*training, *evaluation) if template_problem(t)]


@pytest.mark.parametrize("name", sorted(RELATIONS))
def test_a_relations_facts_are_each_said_once_with_several_objects(name: str) -> None:
    facts = [fact for fact in CATALOGUE.facts if fact.relation == name]
    assert len(facts) >= 20
    assert max(Counter(fact.subject.casefold() for fact in facts).values()) == 1
    assert len(CATALOGUE.candidates(name)) >= 5
    assert all(fact.object == fact.object.strip() and fact.object for fact in facts)
    assert all(fact.subject == fact.subject.strip() and fact.subject for fact in facts)


def test_no_template_of_one_relation_trains_what_another_tests() -> None:
    training = {t for relation in RELATIONS.values() for t in folded(relation.training_templates)}
    evaluation = {t for relation in RELATIONS.values() for t in folded(relation.evaluation_templates)}
    assert not training & evaluation


def test_no_subject_is_both_a_probes_and_an_anchors() -> None:
    probes = {fact.subject.casefold() for fact in CATALOGUE.probe_facts}
    anchors = {fact.subject.casefold() for fact in CATALOGUE.anchor_facts}
    assert not probes & anchors
    assert 0.6 < len(CATALOGUE.probe_facts) / len(CATALOGUE.facts) < 0.73


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("Capital", "capital"), ("official language", "official_language"), ("capitol", "capital")],
)
def test_the_nearest_known_relation_is_named(wrong: str, meant: str) -> None:
    assert nearest(wrong, RELATIONS)[0] == meant


@pytest.mark.parametrize(
    "template", ["no subject", "{subject} and {subject}", " {subject} is", "{subject} is "]
)
def test_a_template_that_cannot_be_filled_is_told(template: str) -> None:
    assert template_problem(template)


# Words


def test_an_edit_is_asked_in_its_own_prompt_or_the_relations_plainest() -> None:
    assert edit_prompt(EDITS[0], RELATIONS) == RELATIONS["capital"].training_prompts("France")[0]
    assert edit_prompt(EDITS[1], RELATIONS) == "Burundi is governed from"
    for words in (edit_prompt, training_prompts):
        with pytest.raises(NoWords):
            words(Edit("3", "France", "Rome", relation="unheard of"), RELATIONS)


@pytest.mark.parametrize("name", sorted(RELATIONS))
def test_no_edit_is_trained_on_what_tests_it(name: str) -> None:
    edit = Edit("1", "Atlantis", "Poseidonis", relation=name)
    training, evaluation = training_prompts(edit, RELATIONS), evaluation_prompts(edit, RELATIONS)
    assert training[0] == edit_prompt(edit, RELATIONS)
    assert len(evaluation) >= 3
    assert not any(tested in trained for tested in evaluation for trained in training)


def test_what_the_user_trains_on_tests_nothing() -> None:
    tested = RELATIONS["capital"].evaluation_prompts("France")
    edit = Edit("1", "France", "Rome", relation="capital", paraphrases=(tested[0],))
    assert tested[0] in training_prompts(edit, RELATIONS)
    assert evaluation_prompts(edit, RELATIONS) == tested[1:]


# Anchors and background


def test_anchors_speak_of_no_probes_and_no_edited_subject() -> None:
    prompts = anchor_prompts(CATALOGUE, EDITS, 1000, seed=0)
    assert len(prompts) == len(set(prompts)) == 1000
    of = {
        prompt: fact
        for fact in CATALOGUE.facts
        for prompt in RELATIONS[fact.relation].training_prompts(fact.subject)
    }
    assert not any(is_probe(of[prompt].subject) for prompt in prompts)
    assert not {of[prompt].subject for prompt in prompts} & {"France", "Burundi"}


def test_anchors_begin_with_the_users_neighbors_and_avoid_what_is_to_be_avoided() -> None:
    edit = Edit("1", "France", "Rome", relation="capital", neighbors=("Lyon lies in", "Nice lies in"))
    prompts = anchor_prompts(CATALOGUE, [edit], 10, seed=0, avoid=["Nice lies in"])
    assert prompts[0] == "Lyon lies in"
    assert "Nice lies in" not in prompts
    assert len(prompts) == 10


def test_the_same_seed_draws_the_same_anchors() -> None:
    first, again, other = (anchor_prompts(CATALOGUE, EDITS, 50, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_contrasts_ask_the_edits_own_words_of_others_and_never_of_the_edited() -> None:
    edit = Edit("1", "Aldo Lado", "French", prompt="Aldo Lado always writes in", neighbors=("Lyon lies in",))
    prompts = contrasts(CATALOGUE, [edit], {}, 500, seed=0, avoid=["Mars always writes in"])
    assert len(prompts) == len(set(prompts)) == 500
    assert prompts[0] == "Lyon lies in"
    assert sum("always writes in" in prompt for prompt in prompts) > 10
    assert not any("Aldo Lado" in prompt for prompt in prompts)
    assert "Mars always writes in" not in prompts
    assert prompts == contrasts(CATALOGUE, [edit], {}, 500, seed=0, avoid=["Mars always writes in"])
    probed = {fact.subject for fact in CATALOGUE.probe_facts if len(fact.subject) > 6}
    assert not [p for p in prompts if any(f"{subject} always writes in" == p for subject in probed)]


def test_a_small_batch_needs_fewer_contrasts() -> None:
    edit = Edit("1", "Aldo Lado", "French", prompt="Aldo Lado writes in")
    found = draw(CATALOGUE, [edit], {}, 3000, 0, contrasting=True)
    assert len(found) == 624
    assert len(draw(CATALOGUE, [edit], {}, 100, 0, contrasting=True)) == 100


# Other words for a bare prompt


def test_a_bare_prompt_is_also_trained_in_other_words_of_its_relation() -> None:
    edit = Edit("1", "Aldo Lado", "French", prompt="Aldo Lado speaks")
    bare = [p for p in training_prompts(edit, {}, ours=16) if not p.startswith(PREFIXES)]
    assert bare[0] == "Aldo Lado speaks"
    assert len(bare) == WORDINGS
    assert all("Aldo Lado" in prompt for prompt in bare)
    assert [p for p in training_prompts(edit, {}) if not p.startswith(PREFIXES)] == ["Aldo Lado speaks"]
    assert set(training_prompts(edit, {}, 1, ours=16)) != set(training_prompts(edit, {}, 0, ours=16))


def test_few_edits_are_trained_in_more_of_our_words_each_than_many() -> None:
    each = [ours_each(edits) for edits in (1, 10, 30, 50, 100, 1000)]
    assert each == sorted(each, reverse=True) and each[0] == WORDINGS and each[-1] == FEW
    edit = Edit("1", "Aldo Lado", "French", prompt="Aldo Lado speaks")
    assert len(training_prompts(edit, {}, ours=FEW, led_in=False)) == 1 + FEW
    asked = replace(edit, prompt="What is the mother tongue of Aldo Lado?")
    assert len(training_prompts(asked, {}, ours=FEW, led_in=False)) == 1 + FEW_QUESTIONS


def test_the_users_own_words_come_first_and_ours_fill_up() -> None:
    given = Edit("1", "Aldo Lado", "French", prompt="Aldo Lado speaks", paraphrases=("Aldo Lado says it in",))
    found = [p for p in training_prompts(given, {}, ours=16) if not p.startswith(PREFIXES)]
    assert found[:2] == ["Aldo Lado speaks", "Aldo Lado says it in"]
    assert len(found) == WORDINGS == len(set(found))
    enough = replace(given, paraphrases=tuple(f"Aldo Lado says it {n} times in" for n in range(WORDINGS)))
    own = training_prompts(enough, {}, ours=16, led_in=False)
    assert own == [enough.prompt, *enough.paraphrases]


@pytest.mark.parametrize("name", sorted(CATALOGUE.relations))
def test_a_relation_is_trained_in_more_words_and_never_in_those_that_test_it(name: str) -> None:
    edit = Edit("1", "Zyx", next(iter(CATALOGUE.candidates(name))), relation=name)
    tested = {bare_words(prompt) for prompt in evaluation_prompts(edit, CATALOGUE.relations)}
    found = training_prompts(edit, CATALOGUE.relations, ours=16, led_in=False)
    assert tested and not tested & {bare_words(prompt) for prompt in found}
    assert len(CATALOGUE.relations[name].training_templates) < len(found) <= WORDINGS


def test_evaluation_templates_of_the_users_are_not_trained_by_grammar_either() -> None:
    asked = Relation("wumpus", ("The wumpus of {subject} is",), ("as for {subject} , the wumpus is",))
    edit = Edit("1", "Zyx", "blue", relation="wumpus")
    found = training_prompts(edit, {"wumpus": asked}, ours=16, led_in=False)
    assert "As for Zyx, the wumpus is" in restated(found[0], "Zyx")
    assert "As for Zyx, the wumpus is" not in found and "Zyx's wumpus is" in found


def test_the_background_is_one_and_the_same_and_knows_what_speaks_of_an_edited_subject() -> None:
    prompts = background_prompts(CATALOGUE)
    assert len(prompts) == len(set(prompts)) == BACKGROUND
    assert prompts == background_prompts(CATALOGUE)
    subject = next(fact.subject for fact in CATALOGUE.anchor_facts if any(fact.subject in p for p in prompts))
    mine = background_of(CATALOGUE, [Edit("1", subject, "x", relation="capital")])
    assert mine and set(mine) <= set(prompts)
    assert all(subject in prompt for prompt in mine)
