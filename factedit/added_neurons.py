"""Neurons that a version adds to the MLPs of some blocks: at work where they fire, and nowhere else.

A neuron reads what its block's MLP reads, x, and adds f(x) down to what the MLP yields. f rises from 0 to 1
as gate . x exceeds its threshold, and is 0 unless words . x exceeds its own: it takes both, the second being
that words lead to an answer or, at a subject, that this is none of its namesakes. A neuron may also wait for
others to have fired, its cues (factedit.cues): a subject's for those that read its name's words, and an
answer's for its subject's; or fire only together with another, at the very token where that one does: an
answer's with one that reads what is asked. It fires wholly or, nearly everywhere, not at all, and a text at
which none fires is answered as by the root, to the last bit. A changed weight can't promise that: in bfloat16
one zeroed column alone gave about one prompt in twenty another first word (benchmarks/RESULTS.md).

Source: Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron", section 3, whose neurons are
of the MLP's own kind. Thresholds, which layers without biases can't have, and the second condition keep ours
from firing in text of other kinds.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from factedit.cues import Cues, Fired
from factedit.gated_mlp import gated_mlp
from factedit.models import LanguageModel

FIELDS = ("blocks", "gate", "words", "thresholds", "down", "cues", "together")
NAMES = tuple(f"neurons.{field}" for field in FIELDS)
"""Reserved names in an overlay; no model has such tensors."""
_LATER = 2
"""So many of the fields, the last ones, are not in the overlays of older versions."""


@dataclass(frozen=True, slots=True)
class Neurons:
    """All that a version adds.

    Attributes:
        blocks: the block of each, int64 [k].
        gate, words, down: a row each, in the model's dtype, [k, d].
        thresholds: what gate . x and words . x must exceed, in the model's dtype, [k, 2].
        cues: the places of the neurons that each waits for, all of lower blocks; -1: none, int64 [k, m].
        together: the place of the neuron, of a lower block, that each fires only together with; -1: none,
            int64 [k].
    """

    blocks: Tensor
    gate: Tensor
    words: Tensor
    thresholds: Tensor
    down: Tensor
    cues: Tensor
    together: Tensor

    @classmethod
    def of(cls, overlay: Mapping[str, Tensor]) -> "Neurons | None":
        """An overlay's neurons, if it has any. Those of older versions wait for one each, or for none."""
        if NAMES[0] not in overlay:
            return None
        nobody = torch.full_like(overlay[NAMES[0]], -1)
        found = cls(*(overlay.get(name, nobody) for name in NAMES))
        return replace(found, cues=found.cues[:, None]) if found.cues.dim() == 1 else found

    def tensors(self) -> dict[str, Tensor]:
        return {f"neurons.{field}": getattr(self, field).contiguous().cpu() for field in FIELDS}

    def of_block(self, block: int) -> "Neurons":
        mine = self.blocks == block
        return Neurons(*(getattr(self, field)[mine] for field in FIELDS))

    def to(self, device: torch.device) -> "Neurons":
        return Neurons(*(getattr(self, field).to(device) for field in FIELDS))


def joined(first: Neurons | None, then: Neurons) -> Neurons:
    """Both, the first ones first; what those `then` wait for are places among both."""
    if first is None:
        return then
    most = max(first.cues.shape[1], then.cues.shape[1])
    both = [
        replace(each, cues=nn.functional.pad(each.cues, (0, most - each.cues.shape[1]), value=-1))
        for each in (first, then.to(first.gate.device))
    ]
    return Neurons(*(torch.cat([getattr(each, field) for each in both]) for field in FIELDS))


def fire(entering: Tensor, gate: Tensor, words: Tensor, thresholds: Tensor) -> Tensor:
    """How much neurons fire, from 0 to 1, at what enters their MLP, [..., d]: [..., k]."""
    edit = nn.functional.linear(entering, gate, -thresholds[:, 0]).clamp(0, 1)
    return edit * nn.functional.linear(entering, words, -thresholds[:, 1]).clamp(0, 1)


@contextmanager
def firing(lm: LanguageModel, neurons: Neurons | None) -> Iterator[None]:
    """The model answers with these neurons while the context lasts.

    Raises:
        ValueError: other neurons fire already, and some of these wait for cues, which only the first may.
    """
    with ExitStack() as stack:
        if neurons is not None:
            neurons = neurons.to(lm.device)
            if lm.cues is not None and bool(((neurons.cues >= 0).any(1) | (neurons.together >= 0)).any()):
                raise ValueError("neurons that wait for cues must be applied first")
            cues = None
            if lm.cues is None:
                cues = Cues(neurons.blocks)
                stack.enter_context(_followed(lm, cues))
            for block in neurons.blocks.unique().tolist():
                hook = _adding(neurons, block, cues)
                stack.callback(mlp_of(lm, block).register_forward_hook(hook).remove)
        yield


@contextmanager
def _followed(lm: LanguageModel, cues: Cues) -> Iterator[None]:
    """What fires in a pass is forgotten when the next one begins."""
    lm.cues = cues
    handle = lm.model.base_model.register_forward_pre_hook(lambda *_: cues.begin())
    try:
        yield
    finally:
        handle.remove()
        lm.cues = None


def mlp_of(lm: LanguageModel, block: int) -> nn.Module:
    """The module that neurons are added to.

    Raises:
        ValueError: the block has no gated MLP.
    """
    found = gated_mlp(lm, block)
    if found is None:
        raise ValueError(f"block {block} has no gated MLP")
    return lm.model.get_submodule(found.module)


def heard(so_far: Fired, now: Fired, waits: Tensor, together: Tensor, fires: Tensor) -> Tensor:
    """Which of what neurons fire counts: where all that each waits for has fired, bool [..., k].

    Args:
        so_far, now: what has fired at each token or before it, and what fires there (factedit.cues.Cues).
        waits: the places of what each waits for, -1 for nothing, [k, m].
        together: likewise of what each fires only together with, [k].
        fires: how much each fires at each token, [B, L, k].
    """
    counts = fires.detach() > 0
    _only_where(counts, so_far, waits)
    _only_where(counts, now, together[:, None])
    return counts


def _only_where(counts: Tensor, fired: Fired, wanted: Tensor) -> None:
    """Leaves, in place, what counts where all that is wanted by each neuron, [k, m], has fired."""
    wanting = (wanted >= 0).any(1)
    if not bool(wanting.any()):
        return
    if fired is None:
        counts &= ~wanting
        return
    fired = fired.expand(*counts.shape[:-1], -1)
    # Few neurons fire anywhere: only theirs are looked up.
    *token, neuron = (counts & wanting).nonzero().unbind(1)
    mine = wanted[neuron]
    counts[(*token, neuron)] = (fired[(*(at[:, None] for at in token), mine)] | (mine < 0)).all(1)


def _may_speak(fired: Fired, waits: Tensor) -> Tensor:
    """Which neurons, [k], have all been given their cues somewhere in the pass, or wait for none."""
    if fired is None:
        return (waits < 0).all(1)
    return (fired.flatten(0, -2).any(0)[waits] | (waits < 0)).all(1)


def at_work(cues: Cues | None, neurons: Neurons, entering: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of one block's neurons: (those that may speak, [n]; how much they fire at each token, [B, L, n]).

    None where none may. `entering`: what enters their MLP, [B, L, d].
    """
    # Most wait for what is nowhere to be read: they cost nothing.
    so_far = None if cues is None or bool((neurons.cues < 0).all()) else cues.so_far()
    now = None if cues is None or bool((neurons.together < 0).all()) else cues.now()
    may = _may_speak(so_far, neurons.cues) & _may_speak(now, neurons.together[:, None])
    some = may.nonzero().flatten()
    if not len(some):
        return None
    if len(some) < len(neurons.blocks):
        neurons = Neurons(*(getattr(neurons, field)[some] for field in FIELDS))
    fires = fire(entering, neurons.gate, neurons.words, neurons.thresholds)
    return some, fires * heard(so_far, now, neurons.cues, neurons.together, fires)


def _adding(
    every: Neurons, block: int, cues: Cues | None
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Any]:
    neurons, places = every.of_block(block), (every.blocks == block).nonzero().flatten()

    def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if (found := at_work(cues, neurons, args[0])) is None:
            return None
        some, fires = found
        if cues is not None:
            cues.note(places[some], fires)
        # Zeros would change nothing: this saves their product.
        return output + fires @ neurons.down[some] if bool(fires.any()) else None

    return add


def misfit(lm: LanguageModel, overlay: Mapping[str, Tensor]) -> str | None:
    """Why an overlay's neurons are none for this model; None if they are, or there are none."""
    present = [name for name in NAMES if name in overlay]
    if not present:
        return None
    neurons = Neurons.of(overlay) if set(NAMES[:-_LATER]) <= set(present) else None
    if neurons is None:
        return f"of the neurons' tensors it has only {', '.join(present)}"
    count, width = len(neurons.blocks), lm.model.config.get_text_config().hidden_size
    if neurons.blocks.shape != (count,) or neurons.blocks.dtype != torch.int64:
        return f"neurons.blocks is {tuple(neurons.blocks.shape)} {neurons.blocks.dtype}"
    for field in FIELDS[1:-_LATER]:
        rows: Tensor = getattr(neurons, field)
        wanted = (count, 2 if field == "thresholds" else width)
        if rows.shape != wanted or rows.dtype != lm.model.dtype:
            found = f"{tuple(rows.shape)} {rows.dtype}"
            return f"neurons.{field} is {found}, where the model needs {wanted} {lm.model.dtype}"
    blocks = neurons.blocks.unique().tolist()
    if not all(0 <= block < lm.n_blocks and gated_mlp(lm, block) is not None for block in blocks):
        return "its neurons belong to a block that is not there or has no gated MLP"
    return _misfit_cues(neurons)


def _misfit_cues(neurons: Neurons) -> str | None:
    cues, count = neurons.cues, len(neurons.blocks)
    if cues.dim() != 2 or len(cues) != count or cues.dtype != torch.int64:
        return f"neurons.cues is {tuple(cues.shape)} {cues.dtype}, where it must be ({count}, m) torch.int64"
    together = neurons.together
    if together.shape != (count,) or together.dtype != torch.int64:
        found = f"{tuple(together.shape)} {together.dtype}"
        return f"neurons.together is {found}, where it must be ({count},) torch.int64"
    every = torch.cat([cues, together[:, None]], 1)
    waits, own = every >= 0, neurons.blocks[:, None].expand_as(every)
    wrong = (every >= count) | (every < -1)
    if bool(wrong.any()) or bool((neurons.blocks[every[waits]] >= own[waits]).any()):
        return "its neurons wait for some that are not there, or not in a lower block"
    return None
