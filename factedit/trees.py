"""Sequences that begin alike, read together: what they share is read once, and none sees the others.

They lie in rows, a tree each: a token is told its place in its own sequences, and a mask lets it see what
comes before it there. What an edit is to know its subject and its words by is asked in hundreds of short
prompts; nearly half of their tokens are the same words after the same words.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from factedit.cues import in_order, seen_by
from factedit.forward import rows_gathered
from factedit.models import LanguageModel
from factedit.prompts import Example

ROOM = 128
"""Tokens of a row, unless one sequence alone is longer."""
TOKENS = 1024
"""Tokens of a pass, on a CPU."""

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a sequence lies: in which row, and the place of each of its tokens in it."""

    sequence: int
    row: int
    path: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one pass.

    Attributes:
        input_ids, positions: of each token; the position is that in its sequences, [B, L].
        seen: which tokens see which, bool [B, L, L]; None: a row is one sequence, padded on the right.
    """

    input_ids: Tensor
    positions: Tensor
    seen: Tensor | None
    placed: Sequence[Placed]


Asked = tuple[int, int, int]
"""An example, which of its answer's tokens, and the row of the logits after which that follows."""
_Row = tuple[list[int], list[Placed]]
"""Its tokens, and what lies in it."""


def trees(lm: LanguageModel, sequences: Sequence[Ids]) -> Iterator[Rows]:
    """All sequences, at least a token each, in passes of rows of like length. For causal models."""
    longest = _longest_woven(lm)
    short = [place for place, ids in enumerate(sequences) if len(ids) <= longest]
    long = [place for place, ids in enumerate(sequences) if len(ids) > longest]
    for found, woven in ((_woven(sequences, short), True), (_alone(sequences, long), False)):
        some: list[_Row] = []
        for row in sorted(found, key=lambda row: len(row[0])):
            if some and (len(some) + 1) * len(row[0]) > lm.at_once(TOKENS):
                yield _collated(lm, some, woven)
                some = []
            some.append(row)
        if some:
            yield _collated(lm, some, woven)


def _longest_woven(lm: LanguageModel) -> int:
    """A mask of ours would undo that of a sliding window."""
    if not can_weave(lm):
        return 0
    window: int | None = getattr(lm.model.config.get_text_config(), "sliding_window", None)
    return sys.maxsize if window is None else window


def read_rows(lm: LanguageModel, module: nn.Module, rows: Rows, cache: DynamicCache | None = None) -> Any:
    """What the model, or its base model, says to rows: its own output."""
    options: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        options["past_key_values"] = cache
    if rows.seen is None:
        return module(input_ids=rows.input_ids, **options)
    unseen = torch.finfo(lm.model.dtype).min
    mask = torch.where(rows.seen, 0.0, unseen).to(lm.model.dtype)[:, None]
    with in_order(seen_by(rows.seen)):
        return module(input_ids=rows.input_ids, attention_mask=mask, position_ids=rows.positions, **options)


def answer_logits(lm: LanguageModel, examples: Sequence[Example]) -> Iterator[tuple[list[Asked], Tensor]]:
    """In pieces: (what is asked for, logits, [n, V] in the model's dtype). For causal models."""
    for rows in trees(lm, [example.ids for example in examples]):
        number: dict[tuple[int, int], int] = {}  # each token is projected once
        asked: list[Asked] = []
        for each in rows.placed:
            for place, position in enumerate(examples[each.sequence].positions):
                at = number.setdefault((each.row, each.path[position]), len(number))
                asked.append((each.sequence, place, at))
        row, column = torch.tensor([*number], device=lm.device).unbind(1)
        with rows_gathered(lm, row, column):
            logits = read_rows(lm, lm.model, rows).logits.squeeze(0)
        yield asked, logits


def _woven(sequences: Sequence[Ids], some: Sequence[int]) -> Iterator[_Row]:
    """In this order neighbours have the most in common."""
    ids: list[int] = []
    placed: list[Placed] = []
    last: Ids = ()
    path: tuple[int, ...] = ()
    for sequence in sorted(some, key=lambda place: tuple(sequences[place])):
        own = sequences[sequence]
        shared = _in_common(last, own)
        if ids and len(ids) + len(own) - shared > ROOM:
            yield ids, placed
            ids, placed, shared = [], [], 0
        path = (*path[:shared], *range(len(ids), len(ids) + len(own) - shared))
        ids += own[shared:]
        placed.append(Placed(sequence, 0, path))
        last = own
    if ids:
        yield ids, placed


def _alone(sequences: Sequence[Ids], some: Sequence[int]) -> Iterator[_Row]:
    for sequence in some:
        ids = sequences[sequence]
        yield list(ids), [Placed(sequence, 0, tuple(range(len(ids))))]


def _in_common(first: Ids, then: Ids) -> int:
    """How many tokens both begin with."""
    for at, (one, other) in enumerate(zip(first, then, strict=False)):
        if one != other:
            return at
    return min(len(first), len(then))


def _collated(lm: LanguageModel, rows: Sequence[_Row], woven: bool) -> Rows:
    width, pad = max(len(ids) for ids, _ in rows), lm.tokenizer.pad_token_id or 0
    input_ids = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids, _ in rows])
    # In NumPy, which is many times faster than torch where little is done at once.
    positions = np.zeros((len(rows), width), np.int64)
    seen = np.tile(np.eye(width, dtype=np.bool_), (len(rows), 1, 1))  # padding sees itself
    found: list[Placed] = []
    for row, (_, placed) in enumerate(rows):
        done = 0  # so many of its tokens
        for each in placed:
            path = np.array(each.path)
            new = int(np.searchsorted(path, done))  # the first of its tokens that is none of an earlier one's
            positions[row, path] = np.arange(len(path))
            seen[row, path[new:, None], path] = np.tri(len(path), dtype=np.bool_)[new:]
            done = max(done, each.path[-1] + 1)
            found.append(Placed(each.sequence, row, each.path))
    visible = torch.from_numpy(seen).to(lm.device) if woven else None
    return Rows(input_ids.to(lm.device), torch.from_numpy(positions).to(lm.device), visible, found)


def can_weave(lm: LanguageModel) -> bool:
    """Whether this model says the same so as it does of each sequence alone: it is tried, once."""
    # Only a yes is kept: weights that yield no numbers are no reason to say no to the model for good.
    if lm.task == "causal" and not getattr(lm, "_can_weave", False):
        lm._can_weave = _tried(lm)  # type: ignore[attr-defined]
    return lm.task == "causal" and bool(lm._can_weave)  # type: ignore[attr-defined]


@torch.inference_mode()
def _tried(lm: LanguageModel) -> bool:
    size = lm.model.config.get_text_config().vocab_size
    prompt, left, right = (tuple((7919 * i + n) % size for i in range(n)) for n in (9, 4, 3))
    sequences = [(*prompt, *left), (*prompt, *right), (*prompt[:5], *right)]
    rows = _collated(lm, [*_woven(sequences, range(len(sequences)))], woven=True)
    try:
        found = read_rows(lm, lm.model, rows).logits.float()
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError):
        return False
    own, together = [], []
    for each in rows.placed:
        ids = torch.tensor([sequences[each.sequence]], device=lm.device)
        own.append(lm.model(input_ids=ids, use_cache=False).logits[0].float())
        together.append(found[each.row, list(each.path)])
    alone, woven = (torch.cat(part) for part in (own, together))
    alone, woven = alone - alone.mean(-1, keepdim=True), woven - woven.mean(-1, keepdim=True)
    return bool((woven - alone).norm() < (1e-3 if lm.model.dtype == torch.float32 else 0.1) * alone.norm())
