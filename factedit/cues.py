"""What has fired so far in a sequence: a neuron may wait for others to fire first, its cues.

It is what attention heads would tell that see one kind of token only, made exact: whether a cue fired at
this token or an earlier one. Whoever runs the model over something else than whole sequences behind one
another (a cache, a part, several continuations of one prompt) says so by `in_order`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AUDIBLE = 0.05
"""A cue is heard where it fires more than this."""

Fired = Tensor | None
"""Which of a version's neurons fire at each token of a pass, bool [B, L, k]; None: none anywhere."""


@dataclass(frozen=True, slots=True)
class Order:
    """In which tokens of a pass follow one another.

    Attributes:
        so_far: from what fires at each token: what has fired there or before it in its sequence.
        given: what fires at each token in blocks that are not computed again.
    """

    so_far: Callable[[Fired], Fired]
    given: Fired = None


def one_by_one(fired: Fired) -> Fired:
    """The order of whole sequences, padded on the right if at all."""
    return None if fired is None else of_few(fired, lambda some: some.cumsum(1) > 0)


def of_few(fired: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`fired`, bool [..., k], changed for the few neurons that fire at all, [..., few]."""
    some = fired.flatten(0, -2).any(0).nonzero().flatten()
    found = fired.clone()
    found[..., some] = change(fired[..., some])
    return found


_WHOLE = Order(one_by_one)
_ORDER: ContextVar[Order] = ContextVar("order", default=_WHOLE)


@contextmanager
def in_order(order: Order) -> Iterator[None]:
    """Passes read tokens in this order meanwhile."""
    token = _ORDER.set(order)
    try:
        yield
    finally:
        _ORDER.reset(token)


class Cues:
    """Of the pass under way.

    Attributes:
        blocks: the block of each of the version's neurons, [k]; `count`: how many they are.
        fired: so far, in the blocks that have been computed.
    """

    def __init__(self, blocks: Tensor) -> None:
        self.blocks, self.count = blocks, len(blocks)
        self.fired: Fired = None

    def begin(self) -> None:
        self.fired = None

    def note(self, places: Tensor, fires: Tensor) -> None:
        """What neurons in some places, [n], fire at each token, [B, L, n]."""
        heard = fires > AUDIBLE
        if not bool(heard.any()):
            return
        if self.fired is None:
            self.fired = torch.zeros((*fires.shape[:-1], self.count), dtype=torch.bool, device=fires.device)
        self.fired[..., places] = heard

    def so_far(self) -> Fired:
        """At each token or before it in its sequence, whoever computed that."""
        return _ORDER.get().so_far(self.now())

    def now(self) -> Fired:
        """At each token itself."""
        given = _ORDER.get().given
        return self.fired if given is None else given if self.fired is None else self.fired | given


def fired_now(cues: Cues | None) -> Fired:
    """In the pass that has been made last, as far as it went."""
    return None if cues is None else cues.fired


Kept = Sequence[tuple[int, int]]
"""Where neurons fire in a sequence: (at which token, which neuron). Few do."""


class HeardAt:
    """Where neurons have fired in the pass that has been made last: the device is asked once for all rows."""

    def __init__(self, cues: Cues | None) -> None:
        self._block_of: list[int] = [] if cues is None else cues.blocks.tolist()
        self._at: dict[tuple[int, int], list[int]] = {}  # by row and token, the neurons' places
        if (fired := fired_now(cues)) is not None:
            for row, token, neuron in fired.nonzero().tolist():
                self._at.setdefault((row, token), []).append(neuron)

    def kept(self, row: int, tokens: Iterable[int], block: int, start: int = 0) -> Kept:
        """What has fired at some tokens of a row of the batch and is not computed again.

        That is all before token `start`, which gets numbers below 0, and blocks below `block` from there on.
        """
        found = ((at - start, n) for at, token in enumerate(tokens) for n in self._at.get((row, token), ()))
        return [(at, n) for at, n in found if at < 0 or self._block_of[n] < block]


def batch_of(sequences: Sequence[Kept], length: int, cues: Cues | None) -> tuple[Tensor | None, Fired]:
    """(what fired before the first token of each, bool [B, k], what fires from there on), if anything."""
    every = [(row, at, n) for row, each in enumerate(sequences) for at, n in each]
    if cues is None or not every:
        return None, None
    before = _true_at([(row, n) for row, at, n in every if at < 0], cues, len(sequences))
    return before, _true_at([each for each in every if each[1] >= 0], cues, len(sequences), length)


def _true_at(places: Sequence[tuple[int, ...]], cues: Cues, *shape: int) -> Tensor:
    found = torch.zeros((*shape, cues.count), dtype=torch.bool, device=cues.blocks.device)
    if places:
        found[torch.tensor(places, device=found.device).unbind(1)] = True
    return found


def after(before: Tensor | None, given: Fired = None) -> Order:
    """The order of what follows on something that was read before.

    Args:
        before: which neurons have fired in it, bool [B, k].
        given: what fires in blocks that are not computed again.
    """

    def so_far(fired: Fired) -> Fired:
        found = one_by_one(fired)
        if before is None or not bool(before.any()):
            return found
        return before[:, None] if found is None else found | before[:, None]

    return Order(so_far, given)


def seen_by(mask: Tensor) -> Order:
    """Each token sees itself and those that `mask`, bool [B, L, L], lets it see."""

    def so_far(fired: Fired) -> Fired:
        if fired is None:
            return None
        visible = mask.to(fired.device).float()
        return of_few(fired, lambda some: visible @ some.float() > 0)

    return Order(so_far)


@contextmanager
def going_on(cues: Cues | None, model: nn.Module) -> Iterator[None]:
    """Each pass of `model` goes on where the last one ended."""
    if cues is None:
        yield
        return
    ended: list[Tensor] = []

    def so_far(fired: Fired) -> Fired:
        return after(ended[0] if ended else None).so_far(fired)

    def keep(*_: Any) -> None:
        if (found := cues.so_far()) is not None:
            ended[:] = [found[:, -1]]

    handle = model.register_forward_hook(keep)
    try:
        with in_order(Order(so_far)):
            yield
    finally:
        handle.remove()
