"""One forward pass over sequences of unlike lengths, each with its own keys and values kept from before.

All new tokens of all sequences, one of those that are being answered and many of those that are being
read, lie behind one another in a single row, so that nothing is padded and every product of the model
is one product. Only attention must know which token belongs to which sequence, and transformers lets
attention be chosen by name; everything else of the model runs as it is.
"""

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from factedit.attention import attention_of, check_usual
from factedit.cues import Cues, Fired, Order, in_order, of_few
from factedit.models import LanguageModel

NAME = "factedit_ragged"


class Rows:
    """The keys and values of sequences, a row each: per layer two tensors [rows, length, heads, d_head].

    Unused cells hold finite numbers, since what is masked is multiplied by zero, not left out.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows = self.length = 0
        # By row, if any: which added neurons have fired in it (factedit.cues), bool [k].
        self.fired: dict[int, Tensor] = {}

    @property
    def n_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())

    def fit(self, rows: int, length: int) -> None:
        """Make room for so much; give room back where hardly any of it is used."""
        if rows <= self.rows <= 8 * rows and length <= self.length <= 8 * length:
            return
        new_rows, new_length = _room(rows, self.rows), _room(length, self.length)
        kept = min(new_rows, self.rows), min(new_length, self.length)
        for layer, pair in self.layers.items():
            self.layers[layer] = tuple(_resized(tensor, new_rows, new_length, kept) for tensor in pair)  # type: ignore[assignment]
        self.rows, self.length = new_rows, new_length

    def write(self, layer: int, cells: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values [N, heads, d_head] into cells [N]; the layer's tensors."""
        if layer not in self.layers:
            self.layers[layer] = tuple(  # type: ignore[assignment]
                new.new_zeros((self.rows, self.length, *new.shape[1:])) for new in (keys, values)
            )
        pair = self.layers[layer]
        for tensor, new in zip(pair, (keys, values), strict=True):
            tensor.flatten(0, 1).index_copy_(0, cells, new)
        return pair

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows over others."""
        source, target = torch.tensor(sources), torch.tensor(targets)
        for tensor in self._tensors():
            tensor.index_copy_(0, target.to(tensor.device), tensor[source.to(tensor.device)])
        moved = {to: self.fired.pop(at) for at, to in zip(sources, targets, strict=True) if at in self.fired}
        for row in targets:
            self.fired.pop(row, None)
        self.fired |= moved

    def clear(self, row: int) -> None:
        self.fired.pop(row, None)
        for tensor in self._tensors():
            tensor[row] = 0

    def _tensors(self) -> Iterator[Tensor]:
        for pair in self.layers.values():
            yield from pair


def _room(wanted: int, present: int) -> int:
    """Grown by at least a half, so that growing costs little; in steps of 16."""
    grown = max(wanted, present + present // 2) if wanted > present else wanted
    return -(-grown // 16) * 16


def _resized(tensor: Tensor, rows: int, length: int, kept: tuple[int, int]) -> Tensor:
    new = tensor.new_zeros((rows, length, *tensor.shape[2:]))
    new[: kept[0], : kept[1]] = tensor[: kept[0], : kept[1]]
    return new


@dataclass(frozen=True, slots=True)
class Part:
    """What one pass reads of one sequence: `ids` at the positions from `start` on, into `row`."""

    row: int
    start: int
    ids: Sequence[int]


@dataclass(slots=True)
class _Pass:
    """Where everything lies, computed once for all layers. There are R rows, N tokens."""

    rows: Rows
    parts: Sequence[Part]
    device: torch.device
    ids: Tensor = field(init=False)  # [1, N]
    positions: Tensor = field(init=False)  # [1, N]
    cells: Tensor = field(init=False)  # [N]: row * length + position
    last: Tensor = field(init=False)  # [R]: each row's last token among the N
    seen: Tensor = field(init=False)  # bool [R, 1, 1, reach]: what the last token attends to
    read: "_Read | None" = field(init=False)
    row: Tensor = field(init=False)  # [N]: each token's row
    first: Tensor = field(init=False)  # [R]: each row's first token among the N

    def __post_init__(self) -> None:
        parts, length = self.parts, self.rows.length
        assert [part.row for part in parts] == list(range(len(parts)))
        places = [range(part.start, part.start + len(part.ids)) for part in parts]
        positions = torch.tensor([place for each in places for place in each])
        counts = torch.tensor([len(part.ids) for part in parts])
        self.ids = torch.tensor([[token for part in parts for token in part.ids]], device=self.device)
        self.positions = positions[None].to(self.device)
        rows = torch.arange(len(parts)).repeat_interleave(counts)
        self.cells = (rows * length + positions).to(self.device)
        self.row = rows.to(self.device)
        last = counts.cumsum(0) - 1
        ends = positions[last]
        reach = int(ends.max()) + 1
        self.last = last.to(self.device)
        self.first = (last - counts + 1).to(self.device)
        self.seen = (torch.arange(reach) <= ends[:, None])[:, None, None].to(self.device)
        many = [place for place, part in enumerate(parts) if len(part.ids) > 1]
        self.read = _Read.of(parts, many, last - counts + 1, self.device) if many else None
        for part in parts:
            if part.start == 0:
                self.rows.fired.pop(part.row, None)

    def order(self, fired: Fired) -> Fired:
        """What has fired in each token's row by then."""
        before = self.rows.fired
        if fired is None and not before:
            return None
        size = len(next(iter(before.values()))) if fired is None else fired.shape[-1]
        nothing = torch.zeros(size, dtype=torch.bool, device=self.device)
        found = torch.stack([before.get(part.row, nothing) for part in self.parts])[self.row]
        if fired is not None:
            found = found | of_few(fired[0], self._in_own_row)
        return found[None]

    def _in_own_row(self, fired: Tensor) -> Tensor:
        total = fired.int().cumsum(0)
        until = total[self.first] - fired[self.first].int()
        return total > until[self.row]

    def remember(self, cues: Cues) -> None:
        """For what is read next in these rows."""
        found = cues.so_far()
        if found is not None:
            ended = found[0, self.last]
            self.rows.fired = {row: ended[row] for row in ended.any(1).nonzero().flatten().tolist()}


@dataclass(frozen=True, slots=True)
class _Read:
    """Of the sequences of which more than one token is read at once: M of them, at most W tokens each."""

    rows: Tensor  # [M]
    tokens: Tensor  # [M, W]: places among the N tokens; too short ones repeat their first
    own: Tensor  # bool [M, W]: not a repetition
    seen: Tensor  # bool [M, 1, W, reach]

    @classmethod
    def of(cls, parts: Sequence[Part], many: list[int], first: Tensor, device: torch.device) -> "_Read":
        counts = torch.tensor([len(parts[place].ids) for place in many])
        starts = torch.tensor([parts[place].start for place in many])
        columns = torch.arange(int(counts.max()))
        own = columns < counts[:, None]
        offsets = torch.where(own, columns, 0)
        positions = starts[:, None] + offsets
        seen = torch.arange(int(positions.max()) + 1) <= positions[..., None]
        tokens = first[many][:, None] + offsets
        return cls(*(t.to(device) for t in (torch.tensor(many), tokens, own, seen[:, None])))


_PASS: ContextVar[_Pass] = ContextVar("pass")


@torch.inference_mode()
def last_logits(lm: LanguageModel, rows: Rows, parts: Sequence[Part]) -> Tensor:
    """Read the parts, one for each row from 0 on; logits after the last token of each, [R, V].

    `rows` must have room (`Rows.fit`) and hold what came before each part's start.

    Raises:
        UnusualAttention: not a model of which this can be computed so.
    """
    this = _Pass(rows, parts, lm.device)

    def gather(_: nn.Module, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, this.last]
        return output

    hook = None if this.read is None else lm.model.base_model.register_forward_hook(gather)
    token = _PASS.set(this)
    try:
        with attention_of(lm, NAME), in_order(Order(this.order)):
            output = lm.model(input_ids=this.ids, position_ids=this.positions, use_cache=False)
            if lm.cues is not None:
                this.remember(lm.cues)
    finally:
        _PASS.reset(token)
        if hook is not None:
            hook.remove()
    logits: Tensor = output.logits
    return logits.squeeze(0)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, N, d], key and value [1, fewer heads, N, d] to [1, N, heads, d]."""
    check_usual(more | {"a mask of its own": attention_mask})
    this = _PASS.get()
    queries = query[0].transpose(0, 1)
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = this.rows.write(layer, this.cells, key[0].transpose(0, 1), value[0].transpose(0, 1))
    reach = this.seen.shape[-1]
    count = len(this.parts)
    newest = (queries if this.read is None else queries[this.last])[:, None]
    answered = _attention(newest, keys[:count, :reach], values[:count, :reach], this.seen, scaling)[:, 0]
    if this.read is None:
        return answered[None], None
    out = queries.new_empty((*queries.shape[:-1], value.shape[-1]))
    out[this.last] = answered
    read = this.read
    reach = read.seen.shape[-1]
    found = _attention(
        queries[read.tokens], keys[read.rows, :reach], values[read.rows, :reach], read.seen, scaling
    )
    out[read.tokens[read.own]] = found[read.own]
    return out[None], None


def _attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None) -> Tensor:
    """query [R, W, heads, d], key and value [R, reach, fewer heads, d], seen [R, 1, W, reach]: like query."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return found.transpose(1, 2)


AttentionInterface.register(NAME, _attend)
