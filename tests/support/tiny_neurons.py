"""Neurons of a tiny model without attention in block 0, by `without_attention`: what fires there is known."""

import torch
from torch import Tensor

from factedit.added_neurons import Neurons, mlp_of
from factedit.models import LanguageModel


def waiting_neurons(lm: LanguageModel, cue: int) -> Neurons:
    """One in block 0 that fires at tokens like `cue` and says nothing; one in block 1 speaks after it."""
    key = entering(lm, cue)
    width = len(key)
    nothing = torch.zeros(width)
    return Neurons(
        blocks=torch.tensor([0, 1]),
        gate=torch.stack([key / (key @ key), nothing]),
        words=torch.zeros(2, width),
        thresholds=torch.tensor([[0.5, -9.0], [-9.0, -9.0]]),
        down=torch.stack([nothing, 3 * torch.randn(width, generator=torch.Generator().manual_seed(0))]),
        cues=torch.tensor([-1, 0]),
    )


def entering(lm: LanguageModel, token: int) -> Tensor:
    """What enters the MLP of block 0 at a token, wherever it stands, [d]."""
    seen: list[Tensor] = []
    handle = mlp_of(lm, 0).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([[token]]))
    handle.remove()
    return seen[0][0]
