"""What enters the block where names' words are read, while the root reads what its probes were scored by.

Most neurons of a version wait for such words (factedit.methods.name_words). The neurons that read them say
nothing, so that what enters their block is the root's in every version: kept, it tells without any reading
which probes a version leaves as they are (factedit.root_answers).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from factedit.added_neurons import Neurons, fire, mlp_of
from factedit.cues import AUDIBLE
from factedit.forward import up_to
from factedit.models import LanguageModel
from factedit.overlay import Overlay
from factedit.trees import Ids, read_rows, trees

MAX_BYTES = 192 << 20
"""Of states that are kept; those of the default model's catalogue probes take about half."""
AT_ONCE = 1 << 14
"""Tokens that neurons are tried at in one product."""


def reading_block(overlay: Overlay) -> int | None:
    """The one block of all the overlay's neurons that wait for nothing; None if there is no such."""
    neurons = Neurons.of(overlay)
    if neurons is None:
        return None
    blocks = neurons.blocks[(neurons.cues < 0).all(1)].unique().tolist()
    return int(blocks[0]) if len(blocks) == 1 else None


class WordStates:
    """By key, what enters the MLP of `block` at all tokens of some sequences, [n, d] in the model's dtype.

    `grown`: since they were unpacked.
    """

    def __init__(self, block: int, states: Mapping[str, Tensor] | None = None) -> None:
        self.block, self.grown = block, False
        self._states = dict(states or {})
        self._bytes = sum(each.nbytes for each in self._states.values())

    @torch.no_grad()
    def fired(self, lm: LanguageModel, asked: Mapping[str, Sequence[Ids]], neurons: Neurons) -> Tensor:
        """Which of the neurons fire anywhere in the sequences of each key, bool [keys, k].

        Only those of `block` are looked at, as if they waited for nothing. To be called while no overlay is
        applied.
        """
        missing = {key: read for key, read in asked.items() if key not in self._states}
        new = _read(lm, self.block, missing) if missing else {}
        states = [new[key] if key in new else self._states[key] for key in asked]
        for key, state in new.items():
            self._keep(key, state)
        found = torch.zeros((len(states), len(neurons.blocks)), dtype=torch.bool, device=lm.device)
        places = (neurons.blocks == self.block).nonzero().flatten()
        mine = neurons.of_block(self.block)
        if not states or not len(places):
            return found
        owner = torch.arange(len(states)).repeat_interleave(torch.tensor([len(each) for each in states]))
        for rows, whose in zip(torch.cat(states).split(AT_ONCE), owner.split(AT_ONCE), strict=True):
            fires = fire(rows.to(lm.device), mine.gate, mine.words, mine.thresholds) > AUDIBLE
            token, which = fires.nonzero().unbind(1)
            found[whose.to(lm.device)[token], places[which]] = True
        return found

    def _keep(self, key: str, state: Tensor) -> None:
        if self._bytes + state.nbytes <= MAX_BYTES:
            self._states[key] = state
            self._bytes += state.nbytes
            self.grown = True

    # As tensors

    def packed(self) -> dict[str, Tensor]:
        """For `unpacked`: the states behind one another."""
        lengths = {key: len(state) for key, state in self._states.items()}
        return {
            "lengths": torch.frombuffer(bytearray(json.dumps(lengths).encode()), dtype=torch.uint8),
            "states": torch.cat([*self._states.values()]),
        }

    @classmethod
    def unpacked(cls, lm: LanguageModel, block: int, tensors: Mapping[str, Tensor] | None) -> "WordStates":
        """What was packed; empty if it is not of this form, or of another model."""
        try:
            lengths = json.loads(tensors["lengths"].numpy().tobytes())  # type: ignore[index]
            states = tensors["states"]  # type: ignore[index]
            if states.shape[1:] != (_width(lm),) or states.dtype != lm.model.dtype:
                return cls(block)
            return cls(block, dict(zip(lengths, states.split([*lengths.values()]), strict=True)))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            return cls(block)


def _width(lm: LanguageModel) -> int:
    return int(lm.model.config.get_text_config().hidden_size)


def _read(lm: LanguageModel, block: int, asked: Mapping[str, Sequence[Ids]]) -> dict[str, Tensor]:
    owner = [key for key, sequences in asked.items() for _ in sequences]
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen[:] = [args[0]]

    found: dict[str, list[Tensor]] = {key: [] for key in asked}
    handle = mlp_of(lm, block).register_forward_pre_hook(see)
    try:
        for rows in trees(lm, [ids for sequences in asked.values() for ids in sequences]):
            if block + 1 < lm.n_blocks:
                with up_to(lm, block + 1):
                    read_rows(lm, lm.model.base_model, rows)
            else:
                read_rows(lm, lm.model.base_model, rows)
            # A token that several sequences of one key begin with is theirs once.
            at: dict[tuple[str, int], set[int]] = {}
            for each in rows.placed:
                at.setdefault((owner[each.sequence], each.row), set()).update(each.path)
            for (key, row), tokens in at.items():
                found[key].append(seen[0][row, sorted(tokens)].cpu())
    finally:
        handle.remove()
    nothing = torch.empty((0, _width(lm)), dtype=lm.model.dtype)
    return {key: torch.cat([nothing, *pieces]) for key, pieces in found.items()}
