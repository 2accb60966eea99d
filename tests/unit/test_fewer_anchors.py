"""As many anchors as the edits want that do not hold yet."""

import pytest

from factedit.anchors import CONTRASTS_AT_LEAST, CONTRASTS_PER_EDIT, enough, fewer
from factedit.facts import Edit

EDIT = Edit(id="1", subject="Peru", prompt="Peru is in", new_object="Asia", neighbors=("Chile is in",))
ANCHORS = ["Chile is in", *(f"anchor {n} is" for n in range(100))]


def test_named_neighbors_stay_and_the_others_are_chosen_evenly() -> None:
    assert fewer(ANCHORS, [EDIT], 4) == ["Chile is in", *(f"anchor {n} is" for n in (0, 25, 50, 75))]


@pytest.mark.parametrize("count", [100, 1000])
def test_no_more_than_there_are(count: int) -> None:
    assert fewer(ANCHORS, [EDIT], count) == ANCHORS


def test_nothing_left_to_hold_wants_the_least() -> None:
    assert enough(0) == CONTRASTS_AT_LEAST and enough(2) == CONTRASTS_AT_LEAST + 2 * CONTRASTS_PER_EDIT
    assert fewer([], [EDIT], 10) == []
