"""Run a model only as far as an edit needs: from the first chosen block on, at the target positions.

Blocks below the first chosen one never change, so their output is computed once (`prefix`), and
the vocabulary projection runs only on the rows that are asked for. Both are done by hooks on the
model's own forward pass, so that every architecture's masks, rotary angles and head stay its own.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from factedit.cues import after, in_order
from factedit.models import LanguageModel
from factedit.prompts import Batch


class _Reached(Exception):
    """A forward pass need go no further."""


def target_logits(
    lm: LanguageModel, batch: Batch, *, prefix: Tensor | None = None, first_block: int = 0
) -> Tensor:
    """Logits at the batch's target positions, [N, V] in the model's dtype.

    `prefix` is `block_input(lm, batch, first_block)`, [B, L, d]; with it the blocks below
    `first_block` are skipped.
    """
    with ExitStack() as stack:
        if prefix is not None and first_block > 0:
            stack.enter_context(blocks_skipped(lm, first_block, prefix))
        stack.enter_context(rows_gathered(lm, batch.rows, batch.cols))
        if batch.fired is not None:
            stack.enter_context(in_order(after(None, batch.fired)))
        output = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **_options(lm))
    logits: Tensor = output.logits
    return logits.squeeze(0)


@torch.no_grad()
def block_input(lm: LanguageModel, batch: Batch, block: int) -> Tensor:
    """What enters `block` for this batch: hidden states, [B, L, d]."""

    with up_to(lm, block) as entering:
        lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **_options(lm))
    return entering[0]


@contextmanager
def up_to(lm: LanguageModel, block: int) -> Iterator[list[Tensor]]:
    """The pass inside ends where `block` begins; what enters it is the only item, once it has ended.

    Raises:
        RuntimeError: the pass did not go through that block.
    """
    entering: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = lm.blocks[block].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with suppress(_Reached):
            yield entering
    finally:
        handle.remove()
    if not entering:
        raise RuntimeError("The forward pass did not go through its blocks.")


def _options(lm: LanguageModel) -> dict[str, bool]:
    return {"use_cache": False} if lm.task == "causal" else {}


@contextmanager
def blocks_skipped(lm: LanguageModel, first_block: int, prefix: Tensor) -> Iterator[None]:
    """The blocks below `first_block` pass on `prefix` in whatever form they return their output."""
    # A block may have a forward of its own: one of a model over several devices has.
    own = [(block, vars(block).get("forward")) for block in list(lm.blocks)[:first_block]]
    passed = _Passed((prefix,) if _returns_tuple(lm) else prefix)
    try:
        for block, _ in own:
            block.forward = passed
        yield
    finally:
        for block, forward in own:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def is_skipped(block: nn.Module) -> bool:
    """Whether a block just now passes on what was computed before."""
    return isinstance(vars(block).get("forward"), _Passed)


class _Passed:
    """Stands for a block's forward pass."""

    def __init__(self, output: Tensor | tuple[Tensor]) -> None:
        self._output = output

    def __call__(self, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return self._output


def _returns_tuple(lm: LanguageModel) -> bool:
    known = getattr(lm, "_blocks_return_tuple", None)
    if known is None:
        seen: list[bool] = []
        handle = lm.blocks[0].register_forward_hook(lambda _m, _a, out: seen.append(isinstance(out, tuple)))
        with torch.no_grad():
            lm.model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=lm.device))
        handle.remove()
        known = seen[0]
        lm._blocks_return_tuple = known  # type: ignore[attr-defined]
    return bool(known)


@contextmanager
def rows_gathered(lm: LanguageModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """The head sees only these tokens, [N] each, as one contiguous [1, N, d] sequence."""

    def gather(_: nn.Module, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[rows, columns].unsqueeze(0)
        return output

    handle = lm.model.base_model.register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()
