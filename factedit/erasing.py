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
from factedit.prompts import names_tokens
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


def forgotten(lm: LanguageModel, asked: Sequence[tuple[Edit, str]]) -> dict[int, Forgotten]:
    """What is to be forgotten, by the place of an edit and its prompt; nothing where no others are known."""
    found: dict[int, Forgotten] = {}
    known: dict[tuple[str | None, str, str], Forgotten | None] = {}
    for place, (edit, prompt) in enumerate(asked):
        if edit.erase and edit.old_object is not None:
            key = edit.relation, edit.old_object, prompt
            if key not in known:
                known[key] = _forgotten(lm, *key)
            if (one := known[key]) is not None:
                found[place] = one
    return found


def _forgotten(lm: LanguageModel, relation: str | None, old: str, prompt: str) -> Forgotten | None:
    # As they follow the prompt: alone, some tokenizers begin every name with one and the same token.
    first, *rest = (tokens[0] for tokens in names_tokens(lm, prompt, [old, *others(relation, old)]))
    rivals = {*rest} - {first}
    return Forgotten(first, tuple(sorted(rivals))) if rivals else None


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
