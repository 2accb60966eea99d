"""Which rows of a batch are answered wrong."""

import torch

from factedit.holding import wrong_rows
from factedit.prompts import Batch

ROWS = torch.tensor([0, 0, 1, 2])
"""Of the first row two tokens are asked for."""
TARGETS = torch.tensor([0, 1, 0, 1])
NONE = torch.zeros(3, 0, dtype=torch.long)
BATCH = Batch(NONE, None, ROWS, torch.zeros(4, dtype=torch.long), TARGETS, torch.arange(3))


def logits(*probable: float) -> torch.Tensor:
    """Of two tokens, by how probable the target is."""
    target = torch.tensor(probable)
    both = torch.stack([target, 1 - target], 1)
    return torch.where(TARGETS[:, None] == 0, both, both.flip(1)).log()


def test_a_row_is_wrong_where_another_token_is_likelier_than_one_of_its_targets() -> None:
    assert wrong_rows(BATCH, logits(0.9, 0.9, 0.9, 0.9)) == set()
    assert wrong_rows(BATCH, logits(0.9, 0.4, 0.9, 0.1)) == {0, 2}


def test_a_row_is_wrong_where_one_of_its_targets_is_less_probable_than_asked() -> None:
    assert wrong_rows(BATCH, logits(0.6, 0.9, 0.9, 0.7), 0.5) == set()
    assert wrong_rows(BATCH, logits(0.6, 0.9, 0.9, 0.7), 0.8) == {0, 2}


def test_what_is_no_number_is_wrong_where_a_probability_is_asked() -> None:
    broken = logits(0.9, 0.9, 0.9, 0.9)
    broken[2] = torch.nan
    assert wrong_rows(BATCH, broken, 0.5) == {1}
