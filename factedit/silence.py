"""What a version says as its root does, to the last bit: texts in which none of its neurons can speak.

Most of them wait for the words of their subject's name (factedit.methods.name_words), which are read in a
low block. Where these are not read, a few blocks tell that nothing else will fire.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from factedit.added_neurons import NAMES, Neurons
from factedit.cues import fired_now
from factedit.forward import up_to
from factedit.models import LanguageModel
from factedit.overlay import Overlay, applied, check_fits
from factedit.trees import Ids, read_rows, trees
from factedit.word_states import WordStates

MARGIN = 1.0
"""Thresholds are taken to be so much lower, by what a neuron rises by: rounding differs from batch to batch.

Measured on SmolLM2 in bfloat16, 300 prompts in batches of two shapes: what neurons go by differs by at most
0.06 in the low block where words are read, and by up to 0.5 in the upper ones. A neuron must be heard
(factedit.cues.AUDIBLE), which takes 0.23 of the margin where both its conditions barely hold.
"""


def can_be_silent(overlay: Overlay) -> bool:
    """Whether the overlay changes nothing where no neuron speaks."""
    return set(overlay) <= set(NAMES)


def silent_by_words(
    lm: LanguageModel, overlay: Overlay, asked: Mapping[str, Sequence[Ids]], words: WordStates
) -> dict[str, bool]:
    """As `silent`, of all sequences of each key together; of an overlay whose `reading_block` is `words`'."""
    check_fits(lm, overlay)
    neurons = Neurons.of(overlay)
    if not asked or neurons is None:
        return dict.fromkeys(asked, True)
    neurons = neurons.to(lm.device)
    awake = words.fired(lm, asked, replace(neurons, thresholds=neurons.thresholds - MARGIN))
    speaks = _any_speaks(neurons, awake, words.block + 1).tolist()
    return {key: not one for key, one in zip(asked, speaks, strict=True)}


@torch.no_grad()
def silent(lm: LanguageModel, overlay: Overlay, sequences: Sequence[Ids]) -> list[bool]:
    """Whether the model says the same with `overlay` as without it after every token of each sequence.

    A no is not sure: it is also said where a neuron nearly speaks, or might do so in a block that is not
    computed. For causal models.

    Raises:
        OverlayMismatch
    """
    check_fits(lm, overlay)
    neurons = Neurons.of(overlay)
    if neurons is None or not len(neurons.blocks) or not can_be_silent(overlay):
        return [can_be_silent(overlay)] * len(sequences)
    neurons = neurons.to(lm.device)
    # Where all those that wait for nothing have been computed, the others can be told from them.
    depth = int(neurons.blocks[(neurons.cues < 0).all(1)].max()) + 1
    easily = replace(neurons, thresholds=neurons.thresholds - MARGIN)
    found = [True] * len(sequences)
    with applied(lm, easily.tensors()):
        for rows in trees(lm, sequences):
            with up_to(lm, depth) if depth < lm.n_blocks else nullcontext():
                read_rows(lm, lm.model.base_model, rows)
            if (fired := fired_now(lm.cues)) is None:
                continue
            awake = torch.stack([fired[each.row, list(each.path)].any(0) for each in rows.placed])
            for each, speaks in zip(rows.placed, _any_speaks(neurons, awake, depth).tolist(), strict=True):
                found[each.sequence] = not speaks
    return found


def _any_speaks(neurons: Neurons, awake: Tensor, depth: int) -> Tensor:
    """In which sequences any neuron that says something has fired or might do so, bool [n].

    `awake`: which have fired in the blocks below `depth`, bool [n, k].
    """
    might = awake.clone()
    for block in sorted({block for block in neurons.blocks.tolist() if block >= depth}):
        here = neurons.blocks == block
        cues = neurons.cues[here]
        might[:, here] = (might[:, cues] | (cues < 0)).all(-1)
    return (might & neurons.down.any(1)).any(1)
