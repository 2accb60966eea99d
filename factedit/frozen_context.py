"""Examples of which only the last positions are computed: their contexts are read once.

An edit of late blocks acts where the answer is formed, and one at the subject on what follows it. So while
training, the keys and values of all earlier tokens are taken as they were, and a step computes a few tokens
an example instead of all. What an edit does to the context itself is left out: whoever trains on these
examples checks the result on whole ones (factedit.methods.fine_tuning does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from factedit.cues import HeardAt, after, batch_of, in_order
from factedit.erasing import Forgotten
from factedit.example_sets import ExampleSet
from factedit.forward import blocks_skipped, rows_gathered
from factedit.models import LanguageModel
from factedit.prompts import Batch, Example, collate
from factedit.spilling import Spilling
from factedit.trees import Rows, read_rows, trees

CLOSE = 0.05
"""How far, in total variation of the answer's probabilities, the two ways to compute may differ in the mean.

In bfloat16 rounding alone makes it 0.02 on SmolLM2, and up to 0.08 at one position of sixty prompts."""


class FrozenContexts(ExampleSet):
    """As ExampleSet, for causal models with a key-value cache; see `can_freeze`.

    Attributes:
        starts: by example, the first position that is computed: the first answered one unless given.
    """

    def __init__(
        self,
        lm: LanguageModel,
        examples: Sequence[Example],
        owner: Sequence[int],
        first_block: int,
        forgotten: Mapping[int, Forgotten] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(lm, examples, owner, 0, forgotten)
        self.first_block = first_block
        self.starts = [example.positions[0] for example in examples] if starts is None else list(starts)
        # By example: what enters the first chosen block from its start on, [T, d];
        # and the context's keys and values in each block from there, [L, blocks, heads, d_head] each.
        self._hidden = Spilling(lm.room)
        self._context = Spilling(lm.room, self._hidden), Spilling(lm.room, self._hidden)
        for rows in trees(lm, [example.ids for example in self.examples]):
            self._read(rows)

    @torch.no_grad()
    def _read(self, rows: Rows) -> None:
        cache, entered = DynamicCache(), []

        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])

        handle = self.lm.blocks[self.first_block].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            read_rows(self.lm, self.lm.model.base_model, rows, cache)
        finally:
            handle.remove()
        chosen = cache.layers[self.first_block :]
        keys, values = (torch.stack([getattr(x, n) for x in chosen], 1) for n in ("keys", "values"))
        heard = HeardAt(self.lm.cues)
        places, row = [each.sequence for each in rows.placed], [each.row for each in rows.placed]
        before = [each.path[: self.starts[each.sequence]] for each in rows.placed]
        computed = [each.path[self.starts[each.sequence] :] for each in rows.placed]
        kept = (_taken(each.permute(0, 3, 1, 2, 4), row, before) for each in (keys, values))
        self._hidden.update(dict(zip(places, _taken(entered[0], row, computed), strict=True)))
        for store, taken in zip(self._context, kept, strict=True):
            store.update(dict(zip(places, taken, strict=True)))
        for each, start in zip(rows.placed, map(len, before), strict=True):
            self._fired[each.sequence] = heard.kept(each.row, each.path, self.first_block, start)

    def length(self, place: int) -> int:
        return self._hidden.length(place)

    def logits(self, index: Sequence[int]) -> tuple[Batch, Tensor]:
        hidden = pad_sequence([self._hidden[i] for i in index], batch_first=True)
        lengths = [self._context[0].length(i) for i in index]
        width, longest = hidden.shape[1], max(lengths)
        columns = torch.arange(longest + width, device=hidden.device)
        start = longest - torch.tensor(lengths, device=hidden.device)
        own = torch.tensor([self._hidden.length(i) for i in index], device=hidden.device)
        # Contexts are padded on the left, answers on the right.
        mask = ((columns >= start[:, None]) & (columns < longest + own[:, None])).long()
        places = columns[longest:][None] - start[:, None]
        batch = self._from_starts(index)
        order = after(*batch_of([self._fired[i] for i in index], width, self.lm.cues))

        def run() -> Tensor:
            skipped = blocks_skipped(self.lm, self.first_block, hidden)
            with skipped, rows_gathered(self.lm, batch.rows, batch.cols), in_order(order):
                output = self.lm.model(
                    input_ids=batch.input_ids,
                    attention_mask=mask,
                    position_ids=places,
                    past_key_values=self._cache(index),
                    use_cache=True,
                )
            logits: Tensor = output.logits.squeeze(0).float()
            return logits

        return batch, self.attending(run)

    def _from_starts(self, index: Sequence[int]) -> Batch:
        """The batch of what is left of each example from its start on."""
        parts: list[Example] = []
        for place in index:
            example, first = self.examples[place], self.starts[place]
            positions = tuple(position - first for position in example.positions)
            parts.append(replace(example, ids=example.ids[first:], positions=positions))
        batch = collate(self.lm, parts, range(len(parts)))
        return replace(batch, index=torch.tensor(list(index)))

    def _cache(self, index: Sequence[int]) -> DynamicCache:
        padded = (
            pad_sequence([store[i] for i in index], batch_first=True, padding_side="left")
            for store in self._context
        )
        keys, values = (each.permute(0, 2, 3, 1, 4) for each in padded)
        cache = DynamicCache()
        for block in range(self.lm.n_blocks):
            layer, place = DynamicLayer(), max(0, block - self.first_block)
            layer.lazy_initialization(keys[:, place], values[:, place])
            layer.keys, layer.values = keys[:, place], values[:, place]
            cache.layers.append(layer)
        return cache


def _taken(every: Tensor, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Some columns of a row, [B, L, ...], for each of `rows`: all taken at once, [len(columns), ...] each."""
    sizes = [len(each) for each in columns]
    row = torch.tensor(rows).repeat_interleave(torch.tensor(sizes))
    column = torch.tensor([at for each in columns for at in each], dtype=torch.long)
    return tuple(every[row.to(every.device), column.to(every.device)].split(sizes))


@torch.no_grad()
def can_freeze(lm: LanguageModel, examples: Sequence[Example], first_block: int) -> bool:
    """Whether this model answers alike both ways: tried on its first examples.

    What can be done from a block on is not tried again for examples that are no longer: it is a matter of the
    model's kind, and of whether neurons are at work that may wait (factedit.cues).
    """
    if lm.task != "causal" or not examples:
        return False
    some = list(examples[:4])
    longest = max(len(example.ids) for example in some)
    tried: dict[tuple[int, bool], int] = lm.__dict__.setdefault("_frozen_from", {})
    state = first_block, lm.cues is None
    if longest > tried.get(state, 0) and _freezes(lm, some, first_block):
        tried[state] = longest
    return longest <= tried.get(state, 0)


def _freezes(lm: LanguageModel, some: Sequence[Example], first_block: int) -> bool:
    try:
        _, frozen = FrozenContexts(lm, some, range(len(some)), first_block).logits(range(len(some)))
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        return False  # no such cache, or not of the usual shape: sliding windows, states
    _, whole = ExampleSet(lm, some, range(len(some)), first_block).logits(range(len(some)))
    distance = (frozen.softmax(-1) - whole.softmax(-1)).abs().sum(-1) / 2
    return bool(distance.mean() < CLOSE)
