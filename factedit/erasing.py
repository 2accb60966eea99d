"""Erasing: what the old object is ranked among, and the loss that takes its lead from it.

To train another answer alone does not erase: the old object is no longer said, but among the objects
of its relation it still is by far the likeliest, and other words for the question bring it back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from factedit.answers import exactly
from factedit.facts import Edit
from factedit.models import LanguageModel
from factedit.relations import builtin_catalogue

MARGIN = 3.0
"""By how many nats the likeliest other object is to lead, so that it does so in other words too.

Of 12 facts that SmolLM2-135M knew and was to forget, 1 counted as erased without this loss, 10 with a
margin of 1, 11 with 3; of 91 other known facts 2 were lost each time.
"""


@lru_cache(maxsize=4096)
def others(relation: str | None, old: str) -> tuple[str, ...]:
    """The catalogue's other objects of a relation; () if it knows none."""
    known = builtin_catalogue().candidates(relation) if relation is not None else ()
    return tuple(name for name in known if not exactly(name, old))


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The first tokens of an erased fact's old object, and of the others that are to be likelier."""

    old: int
    others: tuple[int, ...]


def forgotten(lm: LanguageModel, edits: Sequence[Edit]) -> dict[int, Forgotten]:
    """What is to be forgotten, by the place of its edit; nothing where no other object is known."""
    first: dict[str, int] = {}

    def token(name: str) -> int:
        if name not in first:
            first[name] = int(lm.tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0])
        return first[name]

    found: dict[int, Forgotten] = {}
    for place, edit in enumerate(edits):
        if edit.erase and edit.old_object is not None:
            old = token(edit.old_object)
            rivals = {token(name) for name in others(edit.relation, edit.old_object)} - {old}
            if rivals:
                found[place] = Forgotten(old, tuple(sorted(rivals)))
    return found


def lead(logits: Tensor, rows: Tensor, wanted: Mapping[int, Forgotten]) -> dict[int, Tensor]:
    """By row of a batch, what its old object's first token is ahead of where it is to be, at least 0.

    logits: [N, V] at the target positions; rows: int64 [N], the row each belongs to, ascending;
    wanted: by row. Scalars in nats, with their gradients.
    """
    counts = torch.bincount(rows)
    starts = (counts.cumsum(0) - counts).tolist()
    return {
        row: (logits[starts[row], one.old] - logits[starts[row], list(one.others)].max() + MARGIN).relu()
        for row, one in wanted.items()
    }
