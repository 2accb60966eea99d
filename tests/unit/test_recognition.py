"""A bare prompt's relation is recognised by its words and its object, or not at all."""

import pytest

from benchmarks.wording_overlap import normalised, wordings_of
from factedit.object_types import load_types
from factedit.recognition import Wording, _has_article, load_wordings, recognise, wordings_for
from factedit.relations import builtin_catalogue, template_problem

WORDINGS = load_wordings()
TYPES = load_types()
ASKED_AS_QUESTIONS = {"mother", "birth_date", "director", "historic_county", "instance_of", "voice_type"}


def named(prompt: str, new_object: str, subject: str = "Zyx") -> str | None:
    found = recognise(prompt, subject, new_object)
    return found.name if found else None


# The data


def test_there_are_many_families_and_many_templates() -> None:
    assert len(WORDINGS) >= 90
    assert sum(len(wording.templates) for wording in WORDINGS.values()) >= 1000


@pytest.mark.parametrize("name", sorted(WORDINGS))
def test_a_familys_templates_can_be_filled_and_are_each_said_once(name: str) -> None:
    wording = WORDINGS[name]
    assert not [t for t in wording.templates if template_problem(t)]
    assert len({normalised(t) for t in wording.templates}) == len(wording.templates) >= 8
    assert wording.name == name
    assert wording.description
    assert wording.cues
    assert all(cue == cue.lower().strip() and "{" not in cue for cue in (*wording.cues, *wording.bare))


@pytest.mark.parametrize("name", sorted(WORDINGS))
def test_a_familys_object_type_is_one_there_is(name: str) -> None:
    assert set((WORDINGS[name].object_type or "any").split("|")) <= TYPES.keys() | {"date", "any"}


@pytest.mark.parametrize("name", sorted(ASKED_AS_QUESTIONS))
def test_families_asked_as_questions_are_mostly_worded_as_questions(name: str) -> None:
    templates = WORDINGS[name].templates
    assert sum(template.endswith("?") for template in templates) * 2 >= len(templates)


def test_no_template_is_one_that_the_catalogue_tests() -> None:
    tested = {
        normalised(template)
        for relation in builtin_catalogue().relations.values()
        for template in relation.evaluation_templates
    }
    assert not [t for wording in WORDINGS.values() for t in wording.templates if normalised(t) in tested]


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_types_members_are_many_and_none_is_empty(name: str) -> None:
    assert len(TYPES[name]) >= 5
    assert all(member and member == member.strip() for member in TYPES[name])


def test_a_sentence_before_a_benchmarks_paraphrase_does_not_hide_it() -> None:
    text = "The game was released on May 14, 2013. Danielle Darrieux, a native"
    assert "{subject}, a native" in set(wordings_of(text, "Danielle Darrieux"))


# What is recognised


@pytest.mark.parametrize(
    ("prompt", "new_object", "family"),
    [
        ("The mother tongue of Zyx is", "English", "native_language"),
        ("The official language of Zyx is", "Finnish", "official_language"),
        ("Zyx was written in", "Spanish", "language_of_work"),
        ("Who is the mother of Zyx?", "Abhisheb", "mother"),
        ("When was Zyx born?", "20 December 1971", "birth_date"),
        ("Which year did Zyx end?", "1865", "dissolution_date"),
        ("In which historic county is Zyx located?", "Midlothian", "historic_county"),
        ("What specific class does Zyx belong to?", "mahalle", "instance_of"),
        ("What is the family name of Zyx?", "Lyon", "family_name"),
        ("Who directed the film Zyx?", "Frank Borzage", "director"),
        ("Where is Zyx buried?", "Golders Green Crematorium", "burial_place"),
        ("Zyx is a twin city of", "Prague", "twin_city"),
        ("Which programming language is Zyx written in?", "Perl", "programming_language"),
        ("What language is Zyx written in?", "English", "language_of_work"),
    ],
)
def test_a_prompt_is_recognised_by_its_words(prompt: str, new_object: str, family: str) -> None:
    assert named(prompt, new_object) == family


@pytest.mark.parametrize(
    ("prompt", "new_object", "family"),
    [
        ("Zyx plays", "jazz", "genre"),
        ("Zyx plays", "guitar", "instrument"),
        ("Zyx plays", "football", "sport"),
        ("Zyx, the", "goaltender", "sport_position"),
        ("Zyx is in", "Antarctica", "continent"),
        ("Zyx is in", "France", "country_located_in"),
        ("Zyx is in", "Boston", "located_in"),
        ("Zyx originated in", "Denmark", "country_of_origin"),
        ("Zyx originated in", "Milan", "place_formed"),
        ("What is the position of Zyx?", "defender", "sport_position"),
        ("Zyx's position is", "mayor of Riga", "position_held"),
        ("What is the nationality of Zyx?", "Spanish", "nationality"),
        ("What is the nationality of Zyx?", "Spain", "citizenship"),
    ],
)
def test_a_prompt_that_says_little_is_recognised_by_its_object(
    prompt: str, new_object: str, family: str
) -> None:
    assert named(prompt, new_object) == family


def test_the_subject_may_be_written_otherwise_or_be_missing() -> None:
    assert named("the mother tongue of zyx is", "English", "ZYX") == "native_language"
    assert named("Her mother tongue is", "English", "Danielle Darrieux") == "native_language"
    assert named("The mother tongue of (Zyx [1]) is", "English", "(Zyx [1])") == "native_language"


def test_the_subjects_own_words_do_not_count() -> None:
    assert named("Who directed Mother Tongue?", "Ann Lee", "Mother Tongue") == "director"


# What is not


@pytest.mark.parametrize(
    ("prompt", "new_object"),
    [
        ("Zyx plays", "Avengers"),
        ("Zyx is in", "trouble"),
        ("Zyx, the", "unforgettable"),
        ("Zyx", "English"),
        ("", "English"),
        ("Zyx is", "great"),
        ("The best thing about Zyx is", "kindness"),
        ("Zyx is in", "Georgia"),
        ("The mother tongue of Zyx is", "1984"),
        ("Who is the mother of Zyx?", "3 May 1912"),
    ],
)
def test_what_fits_no_family_or_several_alike_is_left_alone(prompt: str, new_object: str) -> None:
    assert named(prompt, new_object) is None


@pytest.mark.parametrize("role", ["author", "director", "mother", "owner", "architect"])
def test_a_role_of_the_subjects_is_not_taken_for_the_objects(role: str) -> None:
    assert named(f"Zyx is the {role} of", "Something Else") is None
    assert named(f"The {role} of Zyx is", "Somebody Else") == role


def test_other_wordings_than_the_librarys_can_be_given() -> None:
    own = {
        "smell": Wording("smell", "How it smells.", None, ("smells like", "smell"), ("{subject} smells of",))
    }
    found = recognise("Zyx smells like", "Zyx", "roses", own)
    assert found is not None
    assert found.name == "smell"
    assert recognise("The mother tongue of Zyx is", "Zyx", "English", own) is None


# What is trained on


def test_a_recognised_prompt_gets_its_familys_wordings_but_not_itself() -> None:
    texts = wordings_for("The mother tongue of Zyx is", "Zyx", "English")
    assert len(texts) == len(set(texts)) >= 10
    assert all("Zyx" in text and "{subject}" not in text for text in texts)
    assert texts[0] not in wordings_for(texts[0], "Zyx", "English")


def test_an_unrecognised_prompt_gets_no_wordings() -> None:
    assert wordings_for("The best thing about Zyx is", "Zyx", "kindness") == []


# The article before a subject


@pytest.mark.parametrize("prompt", ["The Eiffel Tower is in", "Where is the Eiffel Tower?"])
def test_an_article_before_the_subject_hides_no_bare_prompt(prompt: str) -> None:
    assert named(prompt, "Rome", "Eiffel Tower") == "located_in"


def test_a_prompt_that_begins_with_an_article_may_be_reversed() -> None:
    for the in ("", "The "):
        assert (
            named(f"{the}Zyx is the author of", "Dune") == named("Zyx is the author of", "Dune") != "author"
        )


def test_a_subject_keeps_its_article_in_our_wordings() -> None:
    found = wordings_for("The Eiffel Tower stands in the city of", "Eiffel Tower", "Rome")
    assert found and all("the Eiffel Tower" in text or text.startswith("The Eiffel Tower") for text in found)
    assert any(text.startswith("The Eiffel Tower ") for text in found)
    assert any(" the Eiffel Tower" in text for text in found)
    without = wordings_for("Eiffel Tower stands in the city of", "Eiffel Tower", "Rome")
    assert without and not any(
        "the Eiffel Tower" in text.casefold().replace("of the", "") for text in without
    )


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The Eiffel Tower stands in the city of", "Eiffel Tower"),
        ("In which city is the Eiffel Tower?", "Eiffel Tower"),
        ("the Netherlands' capital is", "Netherlands"),
        ("The Hague, a city in", "Hague"),
    ],
)
def test_an_article_is_the_subjects_own(prompt: str, subject: str) -> None:
    assert _has_article(prompt, subject)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The Apple chief executive is", "Apple"),
        ("Breathe Apple is", "Apple"),
        ("Apple is led by the", "Apple"),
        ("The Applebee is", "Apple"),
        ("The capital is", ""),
    ],
)
def test_an_article_is_anothers_or_none(prompt: str, subject: str) -> None:
    assert not _has_article(prompt, subject)
