"""What a neuron fires at: rows of its gate and up that answer to some keys and to nothing else."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from factedit.curvature import Covariance
from factedit.gated_mlp import GatedMlp
from factedit.methods.detectors import SHARPNESS, SILENT, THRESHOLD, Keys, constant, detectors
from factedit.methods.keys import Context, lookups, read_both
from factedit.models import LanguageModel

FAINTEST = 0.05 * SHARPNESS * (1 - THRESHOLD) * (SILENT - 1)
"""A neuron that fires less than a twentieth of what it should knows its keys too badly to be amplified."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model computes at some contexts' lookups, in one block.

    Attributes:
        entering: what enters the block's MLP there, [n, d] float32.
        lengths: of the hidden vectors that leave the block, [n].
    """

    contexts: list[Context]
    entering: Tensor
    lengths: Tensor

    def between(self, start: int, end: int) -> "Reading":
        some = slice(start, end)
        return Reading(self.contexts[some], self.entering[some], self.lengths[some])

    def keys(self) -> Keys:
        device = self.entering.device
        owner = torch.tensor([c.edit for c in self.contexts], dtype=torch.long, device=device)
        weight = torch.tensor([c.weight for c in self.contexts], device=device)
        return Keys(self.entering, owner, weight)


def read_at(lm: LanguageModel, block: int, mlp: GatedMlp, *found: list[Context]) -> list[Reading]:
    """What the model computes at each list's lookups in `block`, whose MLP is `mlp`; all read together."""
    every = [context for each in found for context in each]
    inner = lm.model.get_submodule(mlp.gate.removesuffix(".weight"))
    entering, leaving = read_both(lookups(lm, every, block), inner, lm.blocks[block])
    whole, starts = Reading(every, entering, leaving.norm(dim=1)), [0, *accumulate(map(len, found))]
    return [whole.between(start, end) for start, end in pairwise(starts)]


def joint(first: Reading, then: Reading) -> Reading:
    """Both, of one block."""
    parts = zip((first.entering, first.lengths), (then.entering, then.lengths), strict=True)
    return Reading([*first.contexts, *then.contexts], *map(torch.cat, parts))


@torch.no_grad()
def recognisers(
    lm: LanguageModel,
    mlp: GatedMlp,
    background: Covariance,
    texts: Tensor,
    own: Reading,
    alike: Reading,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`Neuron.gate` and `Neuron.up` (factedit.methods.neurons), [count, d] each; and its `length`, [count].

    Args:
        background: of what enters the MLP, `mlp`, that is read.
        texts: what enters it at other tokens to which no neuron may answer, [n, d].
        own: what each neuron is to fire at, `edit` being its place; -1: what none may fire at.
        alike: what a neuron might take for its own, likewise.
    """
    keys = own.keys()
    covariance = background.sums[mlp.gate].to(lm.device).double() / background.tokens
    bias = constant(covariance, background.totals[mlp.gate].to(lm.device) / background.tokens, keys)
    detect = detectors(covariance, keys, alike.keys(), texts, count)
    # Measured with the rounded rows, which the model will compute with.
    dtype = lm.tensors[mlp.gate].dtype
    gate = (SHARPNESS * (detect - THRESHOLD * bias)).to(dtype)
    up = (SILENT * bias - detect).to(dtype)
    mine = keys.owner >= 0
    rows, owner, weight = keys.rows[mine], keys.owner[mine], keys.weight[mine]
    fires = (rows * gate[owner]).sum(1).relu() * (rows * up[owner]).sum(1)
    mean_fires = rows.new_zeros(count).index_add_(0, owner, fires * weight)
    lengths = [own.lengths[keys.owner == place].median() for place in range(count)]
    return gate, up, torch.stack(lengths) / mean_fires.clamp_min(FAINTEST)
