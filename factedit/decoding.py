"""Greedy decoding of many prompts at once, which come and go between steps.

A step is one forward pass (factedit.ragged): it reads the prompts that have joined and answers one
token more of all others, so nobody waits for the end of a batch. Tokens go in and tokens come out;
each prompt's are those of plain greedy decoding of it alone, but for ties in the model's dtype.

An answer depends on nothing but weights and prompt, so what a prompt was answered is kept: asked
again it takes no step, or only those for the tokens that were not asked for before.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from factedit.attention import UnusualAttention
from factedit.models import LanguageModel
from factedit.ragged import Part, Rows, last_logits

READ = 512
"""Prompt tokens that a step reads at most unless told otherwise: a long one does not hold up the others."""
KEPT = 1024
"""Prompts whose answers are kept."""
MAX_BYTES = 2 << 30
"""Of keys and values; those who find no room wait for others to end."""


@dataclass(eq=False, slots=True)
class Decoded:
    """A prompt and its answer so far: `tokens`, without the end-of-sequence token that `stopped` it.

    `failed`: the weights yield no finite numbers for it.
    """

    prompt: tuple[int, ...]
    limit: int
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False
    failed: bool = False
    read: int = 0
    """How many of its tokens, prompt and answer, have keys and values."""

    @property
    def done(self) -> bool:
        return self.stopped or self.failed or len(self.tokens) >= self.limit

    @property
    def unread(self) -> int:
        return len(self.prompt) + len(self.tokens) - self.read

    def next_ids(self, count: int) -> Sequence[int]:
        if self.read >= len(self.prompt):
            start = self.read - len(self.prompt)
            return self.tokens[start : start + count]
        return (*self.prompt, *self.tokens)[self.read : self.read + count]


class Decoder:
    """Decodes with the weights that `lm` has whenever `step` is called; they must be the same each time."""

    def __init__(
        self, lm: LanguageModel, *, max_rows: int = 64, max_bytes: int = MAX_BYTES, read: int = READ
    ) -> None:
        self._lm = lm
        self._read = read
        self._max_rows = max_rows
        self._max_cells = max_bytes // _cell_bytes(lm)
        self._rows = Rows()
        self._active: list[Decoded] = []  # by row
        self._waiting: deque[Decoded] = deque()
        self._kept: OrderedDict[tuple[int, ...], Decoded] = OrderedDict()

    def __len__(self) -> int:
        """How many have joined and are not done."""
        return len(self._active) + len(self._waiting)

    @property
    def n_bytes(self) -> int:
        """Of the keys and values."""
        return self._rows.n_bytes

    def join(self, prompt: Sequence[int], limit: int) -> Decoded:
        """Answer a prompt of at least one token with at most `limit` tokens, from the next step on."""
        new = Decoded(tuple(prompt), limit)
        known = self._kept.get(new.prompt)
        if known is not None:
            self._kept.move_to_end(new.prompt)
            new.tokens = known.tokens[:limit]
            new.stopped = known.stopped and len(known.tokens) < limit
        self._waiting.append(new)
        return new

    @torch.inference_mode()
    def leave(self, sequence: Decoded) -> None:
        """Answer it no further."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._active:
            self._retire([sequence])

    @torch.inference_mode()
    def step(self) -> list[Decoded]:
        """One forward pass, if one is needed; those that are done with it."""
        done = self._admit()
        if not self._active:
            return done
        parts = self._parts()
        self._rows.fit(len(parts), max(part.start + len(part.ids) for part in parts))
        best = last_logits(self._lm, self._rows, parts).max(-1)
        for part, value, token in zip(parts, best.values.tolist(), best.indices.tolist(), strict=True):
            self._take(self._active[part.row], len(part.ids), value, token)
        ended = [sequence for sequence in self._active if sequence.done]
        self._retire(ended)
        return done + ended

    def _admit(self) -> list[Decoded]:
        """Let in, in the order in which they joined, whoever finds room; those who are done already."""
        done = []
        to_read = sum(sequence.unread for sequence in self._active if sequence.unread > 1)
        longest = max(map(_length, self._active), default=0)
        while self._waiting:
            first = self._waiting[0]
            if first.done:
                done.append(self._waiting.popleft())
                continue
            rows, longest = len(self._active) + 1, max(longest, _length(first))
            if self._active and (
                rows > self._max_rows or rows * longest > self._max_cells or to_read >= self._read
            ):
                break
            to_read += first.unread
            self._active.append(self._waiting.popleft())
        return done

    def _parts(self) -> list[Part]:
        parts, room = [], self._read
        for row, sequence in enumerate(self._active):
            count = 1 if sequence.unread == 1 else max(1, min(sequence.unread, room))
            room -= count if sequence.unread > 1 else 0
            parts.append(Part(row, sequence.read, sequence.next_ids(count)))
        return parts

    def _take(self, sequence: Decoded, count: int, value: float, token: int) -> None:
        """`token`, of logit `value`, is what follows the `count` tokens that have been read."""
        sequence.read += count
        if not math.isfinite(value):
            sequence.failed = True
        elif sequence.unread > 0:
            return  # the rest of a long prompt is still to be read
        elif token == self._lm.eos_token_id:
            sequence.stopped = True
        else:
            sequence.tokens.append(token)

    def _retire(self, ended: Sequence[Decoded]) -> None:
        """Their rows are given to those in the last rows."""
        if not ended:
            return
        for sequence in ended:
            self._keep(sequence)
        staying = len(self._active) - len(ended)
        free = [row for row, sequence in enumerate(self._active) if sequence in ended]
        for row in free:
            if self._active[row].failed:
                self._rows.clear(row)
        free = [row for row in free if row < staying]
        movers = [row for row in range(staying, len(self._active)) if self._active[row] not in ended]
        if movers:
            self._rows.move(movers, free)
        for source, target in zip(movers, free, strict=True):
            self._active[target] = self._active[source]
        del self._active[staying:]
        if not self._active:
            self._rows = Rows()

    def _keep(self, sequence: Decoded) -> None:
        if sequence.failed:
            return
        known = self._kept.get(sequence.prompt)
        if known is None or len(known.tokens) <= len(sequence.tokens):
            self._kept[sequence.prompt] = sequence
        self._kept.move_to_end(sequence.prompt)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def decode(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], limit: int, *, max_rows: int = 64
) -> list[Decoded]:
    """Greedy answers of at most `limit` tokens, in the prompts' order. For a model of which `can_decode`."""
    decoder = Decoder(lm, max_rows=max_rows)
    found = [decoder.join(prompt, limit) for prompt in prompts]
    while len(decoder):
        decoder.step()
    return found


def can_decode(lm: LanguageModel) -> bool:
    """Whether this model can be decoded so, and says the same as by its own forward pass: it is tried, once.

    Not so: masked models, sliding windows, states, positions by a bias, angles that depend on how
    much is read at once.
    """
    # Only a yes is kept: weights that yield no numbers are no reason to say no to the model for good.
    if not getattr(lm, "_can_decode", False):
        lm._can_decode = _tried(lm)  # type: ignore[attr-defined]
    return bool(lm._can_decode)  # type: ignore[attr-defined]


@torch.inference_mode()
def _tried(lm: LanguageModel) -> bool:
    if lm.task != "causal" or _angles_vary(lm):
        return False
    room = int(getattr(lm.model.config.get_text_config(), "max_position_embeddings", None) or 64)
    lengths = [min(length, room) for length in (24, 13, 5)]
    vocabulary = lm.model.config.get_text_config().vocab_size
    prompts = [[(7919 * i + 13 * n) % vocabulary for i in range(n)] for n in lengths]
    rows = Rows()
    rows.fit(3, max(lengths))
    try:
        # Whole prompts beside parts of others, and more than one row of each kind.
        last_logits(lm, rows, [Part(0, 0, prompts[0][:-1]), Part(1, 0, prompts[1][:3])])
        parts = [Part(0, lengths[0] - 1, prompts[0][-1:]), Part(1, 3, prompts[1][3:]), Part(2, 0, prompts[2])]
        found = last_logits(lm, rows, parts).float()
    except (UnusualAttention, TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError):
        return False
    ids = (torch.tensor([prompt], device=lm.device) for prompt in prompts)
    own = torch.stack([lm.model(input_ids=i, use_cache=False).logits[0, -1] for i in ids]).float()
    own -= own.mean(-1, keepdim=True)
    found -= found.mean(-1, keepdim=True)
    close = 1e-3 if lm.model.dtype == torch.float32 else 0.1
    return bool((found - own).norm() < close * own.norm())


def _angles_vary(lm: LanguageModel) -> bool:
    rope: Any = getattr(lm.model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [
        rope.get("rope_type"),
        *(each.get("rope_type") for each in rope.values() if isinstance(each, dict)),
    ]
    return "dynamic" in kinds or "longrope" in kinds


def _length(sequence: Decoded) -> int:
    return len(sequence.prompt) + sequence.limit


def _cell_bytes(lm: LanguageModel) -> int:
    """About how many bytes a token's keys and values take."""
    config = lm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * lm.n_blocks * heads * size * lm.model.dtype.itemsize)
