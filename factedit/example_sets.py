"""Examples that are computed many times: what no edit changes of them is computed once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from factedit import grouped_attention
from factedit.attention import UnusualAttention, attention_of
from factedit.cues import HeardAt, Kept, batch_of
from factedit.erasing import Forgotten, lead
from factedit.forward import block_input, target_logits
from factedit.models import LanguageModel
from factedit.prompts import Batch, Example, batches, collate
from factedit.spilling import Spilling

PADDED, A_PASS = 1.25, 32
"""A pass may compute so many times the tokens there are, and so many more: about what another pass costs."""
GROUPED_UP_TO = 64
"""Tokens in a row. Beyond, torch's own attention is as fast back and needs less memory."""


class ExampleSet:
    """Examples with what enters the first chosen block cached, so that a step starts there.

    Attributes:
        owner: the fact that each example belongs to.
        forgotten: what is to be forgotten, by example.
    """

    def __init__(
        self,
        lm: LanguageModel,
        examples: Sequence[Example],
        owner: Sequence[int],
        first_block: int,
        forgotten: Mapping[int, Forgotten] | None = None,
    ) -> None:
        self.forgotten = forgotten or {}
        self.lm, self.examples, self.owner, self.first_block = lm, list(examples), list(owner), first_block
        self._prefix = Spilling(lm.room)
        self._fired: dict[int, Kept] = {}  # by example, what fires in these blocks
        self._grouped = True  # until the model turns out to want an attention of its own
        if first_block > 0:
            for batch in batches(lm, self.examples, lm.at_once(64)):
                hidden = block_input(lm, batch, first_block)
                heard = HeardAt(lm.cues)
                for row, place in enumerate(batch.index.tolist()):
                    length = len(self.examples[place].ids)
                    self._prefix.update({place: hidden[row, :length].clone()})
                    self._fired[place] = heard.kept(row, range(length), first_block)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, index: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """A batch of some examples and its cached prefix, [B, L, d]."""
        batch = collate(self.lm, self.examples, index)
        if not self._prefix:
            return batch, None
        prefix = torch.nn.utils.rnn.pad_sequence([self._prefix[i] for i in index], batch_first=True)
        _, fired = batch_of([self._fired[i] for i in index], prefix.shape[1], self.lm.cues)
        return replace(batch, fired=fired), prefix

    def logits(self, index: Sequence[int]) -> tuple[Batch, Tensor]:
        """Logits at the target positions of some examples, [N, V] float32."""
        batch, prefix = self.batch(index)

        def run() -> Tensor:
            return target_logits(self.lm, batch, prefix=prefix, first_block=self.first_block)

        short = self.lm.device.type == "cpu" and batch.input_ids.shape[1] <= GROUPED_UP_TO
        if short and self.lm.task == "causal" and torch.is_grad_enabled():
            return batch, self.attending(run).float()
        return batch, run().float()

    def attending(self, run: Callable[[], Tensor]) -> Tensor:
        """What `run` finds, by attention quick to take gradients of; by the model's own if need be."""
        if self._grouped:
            with suppress(UnusualAttention), attention_of(self.lm, grouped_attention.NAME):
                return run()
            self._grouped = False
        return run()

    def lead(self, index: Sequence[int], batch: Batch, logits: Tensor) -> dict[int, Tensor]:
        """By row of a batch of some examples, how far what is to be forgotten still is ahead."""
        wanted = {row: self.forgotten[i] for row, i in enumerate(index) if i in self.forgotten}
        return lead(logits, batch.rows, wanted)

    def by_length(self, index: Sequence[int], size: int) -> Iterator[list[int]]:
        """Pieces of at most `size`, of like length: little of a piece is padding."""
        piece: list[int] = []
        tokens = 0
        for place in sorted(index, key=self.length):
            length = self.length(place)
            padded, real = (len(piece) + 1) * length, tokens + length
            if len(piece) == size or padded > PADDED * real + A_PASS:
                yield piece
                piece, real = [], length
            piece.append(place)
            tokens = real
        if piece:
            yield piece

    def length(self, place: int) -> int:
        """How many tokens of an example are computed."""
        return len(self.examples[place].ids)
