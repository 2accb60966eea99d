"""Names that sound like another."""

import random

import pytest

from factedit.names import namesakes

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
