"""Where a text names a subject, for all who look for it."""

import pytest

from factedit.methods.name_words import _learnt
from factedit.methods.subject_keys import head_of
from factedit.named import last_named


@pytest.mark.parametrize(
    ("text", "name", "up_to"),
    [
        ("Ali, whose nationality is that of", "Ali", "Ali"),
        ("Ed has earned", "Ed", "Ed"),
        ("Unlike Ed, Ed has earned", "Ed", "Unlike Ed, Ed"),
        ("\u0130zmir lies in \u0130zmir, which is", "\u0130zmir", "\u0130zmir lies in \u0130zmir"),
        ("In \u0130stanbul and in Rome one speaks", "Rome", "In \u0130stanbul and in Rome"),
        ("C++ was made by", "C++", "C++"),
        ("Anatole France's books", "france", "Anatole France"),
        ("THE CAPITAL OF FRANCE IS", "France", "THE CAPITAL OF FRANCE"),
    ],
)
def test_a_subject_is_sought_as_whole_words_the_last_ones(text: str, name: str, up_to: str) -> None:
    assert head_of(text, name) == up_to


def test_where_no_word_is_the_subject_the_last_that_holds_it_counts() -> None:
    assert head_of("\u65e5\u672c\u306e\u9996\u90fd\u306f", "\u65e5\u672c") == "\u65e5\u672c"
    assert head_of("Francophones and Francophiles", "franco") == "Francophones and Franco"
    assert last_named("aaa", "aa") == (1, 3)


def test_a_subject_that_is_nowhere_has_no_place() -> None:
    assert last_named("The capital of Spain is", "France") is None
    assert head_of("The capital of Spain is", "France") == "The capital of Spain is"


def test_a_names_words_are_learnt_where_it_stands() -> None:
    assert "ED HAS EARNED" in _learnt("Ed", ["Ed has earned"], 0)
