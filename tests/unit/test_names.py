"""Names that sound like another."""

import random

import pytest

from factedit.names import BEGINNINGS, made_alike, namesakes

HEADS = ["Gibbs", "Ross", "Leverett", "Byrd"]


def test_namesakes_end_as_the_name_does() -> None:
    found = namesakes("Byrd Glacier", HEADS, 6, random.Random(0))
    assert found and {name.split()[-1] for name in found} == {"Glacier"}
    assert "Byrd Glacier" not in found and len(set(found)) == len(found)


def test_a_long_name_shares_all_but_its_first_word_or_its_last_alone() -> None:
    found = namesakes("New Bedford Whaling Museum", HEADS, 8, random.Random(0))
    assert {name.split(maxsplit=1)[1] for name in found} == {"Bedford Whaling Museum", "Museum"}


@pytest.mark.parametrize("name", ["Peru", ""])
def test_a_single_word_has_none(name: str) -> None:
    assert namesakes(name, HEADS, 6, random.Random(0)) == []


def made(name: str) -> set[str]:
    return {made_alike(name, HEADS, random.Random(seed)) for seed in range(40)}


def test_another_name_keeps_the_last_words_and_the_small_ones() -> None:
    found = made("Museum of the Navy")
    assert all(name.endswith(" Navy") for name in found)
    assert {name.split()[0] for name in found} == {*HEADS, "Museum"} - {"Museum"}
    assert all(name.split()[1:3] == ["of", "the"] for name in found)


def test_figures_become_others() -> None:
    found = made("25 Crown Street")
    assert all(name[:2].isdigit() and name.endswith(" Street") for name in found) and len(found) > 20
    assert all(name.startswith("S/") and name[2:].isdigit() for name in made("S/2004"))


def test_a_single_word_keeps_its_end() -> None:
    found = made("Brumgard")
    assert all(any(name.startswith(each) for each in BEGINNINGS) for name in found)
    assert all(name.endswith("rd") for name in found) and len({len(name) for name in found}) > 2


@pytest.mark.parametrize("name", ["X", "", "a b"])
def test_the_shortest_names_are_made_alike_too(name: str) -> None:
    assert all(isinstance(other, str) for other in made(name))
