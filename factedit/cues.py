"""What has fired so far in a sequence: a neuron may wait for others to fire first, its cues.

It is what attention heads would tell that see one kind of token only, made exact: whether a cue fired at
this token or an earlier one. Whoever runs the model over something else than whole sequences behind one
another (a cache, a part, several continuations of one prompt) says so by `in_order`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

AUDIBLE = 0.05
"""A cue is heard where it fires more than this."""

Fired = Tensor | None
"""Which of a version's neurons fire at each token of a pass, bool [B, L, k]; None: none anywhere."""
Order = Callable[[Fired], Fired]
"""Which of them have fired at each token or before it in its sequence, likewise."""


def one_by_one(fired: Fired) -> Fired:
    """The order of whole sequences, padded on the right if at all."""
    return None if fired is None else of_few(fired, lambda some: some.cumsum(1) > 0)


def of_few(fired: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`fired`, bool [..., k], changed for the few neurons that fire at all, [..., few]."""
    some = fired.flatten(0, -2).any(0).nonzero().flatten()
    found = fired.clone()
    found[..., some] = change(fired[..., some])
    return found


_ORDER: ContextVar[Order] = ContextVar("order", default=one_by_one)


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
        return _ORDER.get()(self.fired)


def fired_now(cues: Cues | None) -> Fired:
    """In the pass that has been made last, as far as it went."""
    return None if cues is None else cues.fired


Kept = Tensor
"""Where neurons fire in a sequence, [n, 2]: at which token, which neuron. Few do."""


def kept(cues: Cues | None, row: int, tokens: Tensor | slice, block: int, start: int = 0) -> Kept | None:
    """What has fired at some tokens of a row of the last pass's batch and is not computed again, if anything.

    That is all before token `start`, which gets numbers below 0, and blocks below `block` from there on.
    """
    if cues is None or cues.fired is None or not len(found := cues.fired[row, tokens].nonzero()):
        return None
    found = found - torch.tensor([start, 0], device=found.device)
    return found[(found[:, 0] < 0) | (cues.blocks[found[:, 1]] < block)]


def batch_of(sequences: Sequence[Kept | None], length: int, cues: Cues | None) -> tuple[Tensor | None, Fired]:
    """(what fired before the first token of each, bool [B, k], what fires from there on), if anything."""
    if cues is None or all(each is None for each in sequences):
        return None, None
    device = next(each.device for each in sequences if each is not None)
    before = torch.zeros((len(sequences), cues.count), dtype=torch.bool, device=device)
    fired = torch.zeros((len(sequences), length, cues.count), dtype=torch.bool, device=device)
    for row, each in enumerate(sequences):
        if each is not None:
            early = each[:, 0] < 0
            before[row, each[early, 1]] = True
            fired[row, each[~early, 0], each[~early, 1]] = True
    return before, fired


def after(before: Tensor | None, given: Fired = None) -> Order:
    """The order of what follows on something that was read before.

    Args:
        before: which neurons have fired in it, bool [B, k].
        given: what fires in blocks that are not computed again.
    """

    def order(fired: Fired) -> Fired:
        if given is not None:
            fired = given if fired is None else fired | given
        found = one_by_one(fired)
        if before is None or not bool(before.any()):
            return found
        return before[:, None] if found is None else found | before[:, None]

    return order


def seen_by(mask: Tensor) -> Order:
    """Each token sees itself and those that `mask`, bool [B, L, L], lets it see."""

    def order(fired: Fired) -> Fired:
        if fired is None:
            return None
        visible = mask.to(fired.device).float()
        return of_few(fired, lambda some: visible @ some.float() > 0)

    return order


@contextmanager
def going_on(cues: Cues | None, model: nn.Module) -> Iterator[None]:
    """Each pass of `model` goes on where the last one ended."""
    if cues is None:
        yield
        return
    ended: list[Tensor] = []

    def order(fired: Fired) -> Fired:
        return after(ended[0] if ended else None)(fired)

    def keep(*_: Any) -> None:
        if (found := cues.so_far()) is not None:
            ended[:] = [found[:, -1]]

    handle = model.register_forward_hook(keep)
    try:
        with in_order(order):
            yield
    finally:
        handle.remove()
