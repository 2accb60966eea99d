"""What a neuron fires at: rows of its gate and up that answer to some keys and to nothing else."""

import torch
from torch import Tensor

from factedit.curvature import Covariance
from factedit.gated_mlp import GatedMlp
from factedit.methods.detectors import SHARPNESS, SILENT, THRESHOLD, Keys, constant, detectors
from factedit.methods.keys import Context, Lookups, lookups, read_inputs, read_outputs
from factedit.models import LanguageModel

FAINTEST = 0.05 * SHARPNESS * (1 - THRESHOLD) * (SILENT - 1)
"""A neuron that fires less than a twentieth of what it should knows its keys too badly to be amplified."""


@torch.no_grad()
def recognisers(
    lm: LanguageModel,
    block: int,
    mlp: GatedMlp,
    background: Covariance,
    texts: Tensor,
    own: list[Context],
    alike: list[Context],
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`Neuron.gate` and `Neuron.up` (factedit.methods.neurons), [count, d] each; and its `length`, [count].

    Args:
        background: of what enters the MLP of `block`, `mlp`; `texts`: what enters it at other tokens to which
            no neuron may answer, [n, d].
        own: what each neuron is to fire at, `edit` being its place; -1: what none may fire at.
        alike: what a neuron might take for its own, likewise.
    """
    read = lookups(lm, own, block)
    keys, hidden = _keys(lm, own, read, mlp), read_outputs(read, lm.blocks[block])
    covariance = background.sums[mlp.gate].to(lm.device).double() / background.tokens
    bias = constant(covariance, background.totals[mlp.gate].to(lm.device) / background.tokens, keys)
    others = _keys(lm, alike, lookups(lm, alike, block), mlp)
    detect = detectors(covariance, keys, others, texts, count)
    # Measured with the rounded rows, which the model will compute with.
    dtype = lm.tensors[mlp.gate].dtype
    gate = (SHARPNESS * (detect - THRESHOLD * bias)).to(dtype)
    up = (SILENT * bias - detect).to(dtype)
    mine = keys.owner >= 0
    rows, owner, weight = keys.rows[mine], keys.owner[mine], keys.weight[mine]
    fires = (rows * gate[owner]).sum(1).relu() * (rows * up[owner]).sum(1)
    mean_fires = rows.new_zeros(count).index_add_(0, owner, fires * weight)
    lengths = [hidden[keys.owner == place].norm(dim=1).median() for place in range(count)]
    return gate, up, torch.stack(lengths) / mean_fires.clamp_min(FAINTEST)


def _keys(lm: LanguageModel, found: list[Context], read: Lookups, mlp: GatedMlp) -> Keys:
    """What enters the MLP at the contexts' lookups, `read`."""
    module = lm.model.get_submodule(mlp.gate.removesuffix(".weight"))
    owner = torch.tensor([context.edit for context in found], dtype=torch.long, device=lm.device)
    weight = torch.tensor([context.weight for context in found], device=lm.device)
    return Keys(read_inputs(read, module), owner, weight)
