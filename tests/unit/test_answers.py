"""When an answer counts as right."""

import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factedit.answers import begins_with, clause, exactly, mentions, normalise


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  United\tKingdom", "united kingdom"),
        ("an apple, a pear", "apple pear"),
        ("U.S.A.", "u s"),
        ("São Paulo", "são paulo"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("\ufb01nch", "finch"),
        ("Theodore", "theodore"),
        ("", ""),
    ],
)
def test_case_spaces_punctuation_and_articles_do_not_count(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_composed_and_decomposed_accents_are_the_same() -> None:
    assert exactly("Bogota\u0301", "Bogot\u00e1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C", "C++"),
        ("C#", "C++"),
        ("C#", "C"),
        ("F", "F#"),
        ("A", "A+"),
        ("Canal", "Canal+"),
        ("5", "-5"),
        ("5", "\N{MINUS SIGN}5"),
        ("-5", "+5"),
        ("0.5 degrees", "(-0.5) degrees"),
        ("UTC+5", "UTC-5"),
    ],
)
def test_signs_tell_answers_apart(one: str, other: str) -> None:
    assert not exactly(one, other) and not exactly(other, one)
    assert not begins_with(f"{one} is", (other,)) and not begins_with(f"{other}, which", (one,))
    assert not mentions(f"It is {one}.", other) and not mentions(f"It is {other}.", one)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("c++.", "C++"),
        ("C++11", "C++ 11"),
        ("C#/C++", "C#, C++"),
        ('"A+"', "an A+"),
        ("-5.", "\N{MINUS SIGN}5"),
        ('"-5"', "(-5)"),
        ("UTC +5", "UTC+5"),
    ],
)
def test_what_stands_around_signs_does_not_count(answer: str, target: str) -> None:
    assert exactly(answer, target)
    assert begins_with(f"{answer} and", (target,))
    assert mentions(f"It is {answer}", target)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris.", "Paris"),
        ("U. S.", "U.S."),
        ("Saint-Denis", "Saint Denis"),
        ("Boeing-747", "Boeing 747"),
        ("F-16", "F 16"),
        ("1990-1995", "1990 1995"),
        ("1990 -1995", "1990 - 1995"),
        ("5%-10%", "5 10"),
        ("5'-3'", "5 3"),
        ("- 5", "5"),
        ("#1", "1"),
        ("18+", "18"),
        ("2+2", "2 2"),
        ("Simon + Garfunkel", "Simon Garfunkel"),
        ("A+B", "A B"),
        ("Rome -- Italy", "Rome, Italy"),
    ],
)
def test_other_signs_do_not_count(one: str, other: str) -> None:
    assert exactly(one, other)


@given(st.text(st.characters(exclude_characters="+#-\N{MINUS SIGN}")))
def test_a_text_without_signs_is_normalised_by_squads_convention(text: str) -> None:
    folded = unicodedata.normalize("NFKC", text).casefold()
    if not set(folded) & set("+#-\N{MINUS SIGN}"):
        plain = folded.translate(dict.fromkeys(map(ord, string.punctuation), " "))
        assert normalise(text) == " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


@given(st.text())
def test_normalising_twice_changes_no_more(text: str) -> None:
    once = normalise(text)
    assert once.split() == once.split(" ") or once == ""
    assert not set(once) & set("!?.,;:'\"")


@given(st.text())
def test_every_text_is_exactly_itself(text: str) -> None:
    assert exactly(text, text)


def test_an_edits_answer_is_right_only_as_a_whole() -> None:
    assert exactly(" Rome.", "Rome")
    assert not exactly("Rome, the capital of Italy", "Rome")
    assert not exactly("Rom", "Rome")
    assert not exactly("", "Rome")


def test_a_probes_answer_is_right_when_it_opens_with_the_target() -> None:
    assert begins_with(" Paris, which lies on the Seine", ("Paris",))
    assert begins_with("The Netherlands and", ("Netherlands",))
    assert begins_with("New York City is", ("New York",))


def test_a_target_must_end_at_a_words_end() -> None:
    assert not begins_with("Parisian cafés", ("Paris",))
    assert not begins_with("New Yorkers", ("New York",))
    assert not begins_with("New", ("New York",))


def test_a_target_in_the_middle_of_the_answer_does_not_count() -> None:
    assert not begins_with("not Paris", ("Paris",))


def test_any_of_the_targets_will_do() -> None:
    assert begins_with("UK is", ("United Kingdom", "Great Britain", "UK"))
    assert not begins_with("France", ("United Kingdom", "UK"))


def test_a_target_of_no_words_never_matches() -> None:
    assert not begins_with("anything", ("", "the", "..."))
    assert not begins_with("anything", ())


@given(st.text(), st.text())
def test_an_answer_that_is_the_target_also_begins_with_it(target: str, more: str) -> None:
    if normalise(target):
        assert begins_with(f"{target} {more}", (target,))


@pytest.mark.parametrize(
    ("answer", "first"),
    [
        (" Paris. It lies on the Seine", "Paris"),
        ("Paris, a city", "Paris"),
        ("Paris\nLondon", "Paris"),
        ("Paris; and", "Paris"),
        ("Paris! Really?", "Paris"),
        ("1,000 people", "1,000 people"),
        ("Paris", "Paris"),
        ("", ""),
    ],
)
def test_the_clause_ends_where_the_first_sentence_or_clause_does(answer: str, first: str) -> None:
    assert clause(answer) == first


@given(st.text())
def test_a_clause_opens_the_answer_and_holds_no_end(answer: str) -> None:
    first = clause(answer)
    assert answer.strip().startswith(first)
    assert clause(first) == first.strip() or not set(first) & set("\n.;!?")
