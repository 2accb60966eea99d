"""Neurons that fire at one subject only, in closed form, and where a gated MLP has room for them.

A neuron of a gated MLP adds act(g . x) (u . x) d to a token's hidden vector. With g a linear detector of the
subject less a threshold, and u . x constant, it adds d at the subject's last token and nothing anywhere else:
unlike a change of the MLP-out matrix alone, which moves every token a little.

Source: Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron", section 3 (a neuron a mistake,
trained there and added; solved here, and put in place of the least used ones, so that no shape changes).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from factedit.curvature import Covariance
from factedit.gated_mlp import GatedMlp, gated_mlp
from factedit.models import LanguageModel

WEIGHT = 30.0
"""How many average tokens of the background a subject is weighed against."""
RIDGE = 1e-6
"""Added to the diagonal, as a share of its mean."""
THRESHOLD, SHARPNESS = 0.5, 40.0
"""A neuron fires where its detector, 1 at its subject and 0 elsewhere, exceeds the threshold: act(z) of a
gate is about 0 for z < -5, which is an eighth of the detector's range below."""
GAIN = 1.15
"""For the subject in other contexts, at which the detector says a little less."""
MOST = 0.25
"""The share of a block's neurons that may be replaced."""


def measured(lm: LanguageModel, blocks: Sequence[int]) -> list[str]:
    """The matrices of whose inputs the mean and the covariance are needed, where there are gated MLPs."""
    return [n for b in blocks if (mlp := gated_mlp(lm, b)) is not None for n in (mlp.gate, mlp.down)]


def detectors(covariance: Tensor, keys: Tensor, weight: Tensor, owner: Tensor, count: int) -> Tensor:
    """One direction w a subject, [count, d] float64: w . x is 1 at its own keys, 0 at others' and elsewhere.

    Ridge regression against the background, whose E[x x^T] is `covariance`, [d, d].

    Args:
        keys: what enters the MLP at the subjects, in several contexts each, [n, d]; `weight`: of each, [n].
        owner: whose key it is, [n]; -1: nobody's, only to be left alone.
    """
    rows = keys.double()
    weighed = rows.T * weight.double()
    wanted = (owner[:, None] == torch.arange(count, device=owner.device)).double()
    solved: Tensor = torch.linalg.solve(weighed @ rows + WEIGHT * _ridged(covariance), weighed @ wanted)
    return solved.T


def constant(covariance: Tensor, mean: Tensor) -> Tensor:
    """The direction b, [d] float64, with b . x nearest to 1 at all tokens: a bias for layers without one."""
    found: Tensor = torch.linalg.solve(_ridged(covariance), mean.double())
    return found


def _ridged(covariance: Tensor) -> Tensor:
    ridged = covariance.double().clone()
    ridged.diagonal().add_(RIDGE * ridged.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return ridged


def least_used(background: Covariance, mlp: GatedMlp, down: Tensor, taken: Tensor) -> list[int]:
    """Neurons by how little they add to the background, least first; not those `taken`, [m] bool.

    At most the share `MOST` of all, those taken included.
    """
    share = background.sums[mlp.down].diagonal() / background.tokens
    adds = (share.clamp_min(0).sqrt() * down.float().norm(dim=0)).masked_fill(taken, float("inf"))
    room = max(0, int(MOST * len(adds)) - int(taken.sum()))
    return [int(neuron) for neuron in adds.argsort()[:room]]
