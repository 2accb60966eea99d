"""What tells some tokens from all others, in closed form: linear detectors.

A neuron with a detector of its subject and a threshold (factedit.added_neurons) fires at the subject's last
token, however clearly that is recognised, and nowhere else.

Source: Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron", section 3 (a neuron a mistake,
trained there; solved here).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.gated_mlp import gated_mlp
from factedit.models import LanguageModel

WEIGHT = 30.0
"""How many average tokens of the background a subject is weighed against."""
RIDGE = 1e-6
"""Added to the diagonal, as a share of its mean."""
TEXTS = 0.8
"""Share of running text in what detectors are to be silent at; prompts are the rest."""
AT_LEAST, AT_MOST = 0.75, 0.38
"""What a detector is to say of its subject in each context, and of each name that sounds like it."""
ROUNDS, FIRST_WEIGHT, LAST_WEIGHT = 6, 0.2, 10.0
"""A key of which a detector says something else weighs more in the next round, twice as much each time."""


def measured(lm: LanguageModel, blocks: Sequence[int]) -> list[str]:
    """The matrices of whose inputs the covariance is needed, where there are gated MLPs."""
    return [mlp.gate for block in blocks if (mlp := gated_mlp(lm, block)) is not None]


@dataclass(frozen=True, slots=True)
class Keys:
    """What enters the MLP at some lookups, [n, d] float32.

    Attributes:
        owner: whose key it is, or whose it resembles, by the detector's place, [n]; -1: nobody's in
            particular. `weight`: of each in the regression, [n].
    """

    rows: Tensor
    owner: Tensor
    weight: Tensor


def detectors(covariance: Tensor, subjects: Keys, others: Keys, texts: Tensor, count: int) -> Tensor:
    """One direction w a subject, [count, d] float64: w . x is 1 at its own keys, 0 at others' and elsewhere.

    Ridge regression against the background, whose E[x x^T] is `covariance`, [d, d]; then again with more
    weight on those keys that come out on the wrong side, as boosting does (Freund and Schapire 1997).

    Args:
        subjects: their keys in several contexts each; nobody's are to be left alone.
        others: keys that the detector of their owner must not answer to, or nobody's, that none must;
            unlike subjects' they weigh nothing until one does.
        texts: what enters the MLP at tokens to which no detector may answer either, [n, d] float32.
    """
    normal, weighed = _normal(covariance, subjects)
    wanted = (subjects.owner[:, None] == torch.arange(count, device=weighed.device)).double()
    inverse = torch.linalg.inv(normal)
    solved = inverse @ weighed @ wanted
    each = (_told_apart(inverse, solved[:, n], *_of(n, subjects, others), texts) for n in range(count))
    return torch.stack(list(each))


def _of(place: int, subjects: Keys, others: Keys) -> tuple[Tensor, Tensor]:
    """(the keys that this detector must be right about, [n, d] float64; which are its own, [n] bool)."""
    near = others.rows[(others.owner == place) | (others.owner < 0)]
    own = subjects.owner == place
    return torch.cat([subjects.rows, near]).double(), torch.cat([own, own.new_zeros(len(near))])


def _told_apart(inverse: Tensor, solved: Tensor, rows: Tensor, own: Tensor, texts: Tensor) -> Tensor:
    """The detector `solved`, [d], with as much weight on `rows` as it takes to be right about them.

    Args:
        inverse: of the regression's normal matrix, [d, d]; more weight is a low-rank change of it (Woodbury).
    """
    weight, found = rows.new_zeros(len(rows)), solved
    unheard = torch.ones(len(texts), dtype=torch.bool, device=texts.device)
    for _ in range(ROUNDS):
        heard = unheard & (texts @ found.to(texts.dtype) > AT_MOST)
        unheard &= ~heard
        rows, own = torch.cat([rows, texts[heard].double()]), _longer(own, heard)
        weight = _longer(weight, heard)
        said = rows @ found
        wrong = torch.where(own, said < AT_LEAST, said > AT_MOST)
        if not bool(wrong.any()):
            break
        weight = torch.where(wrong, (2 * weight).clamp(FIRST_WEIGHT, LAST_WEIGHT), weight)
        heavy = weight > 0
        root, spread = weight[heavy].sqrt(), inverse @ rows[heavy].T
        inner = root[:, None] * (rows[heavy] @ spread) * root
        inner.diagonal().add_(1)
        missing = own[heavy].double() - rows[heavy] @ solved
        found = solved + spread @ (root * torch.linalg.solve(inner, root * missing))
    return found


def _longer(each: Tensor, heard: Tensor) -> Tensor:
    """With a zero more for every token that was heard."""
    return torch.cat([each, each.new_zeros(int(heard.sum()))])


def silent_at(covariance: Tensor, texts: Tensor) -> Tensor:
    """E[x x^T] of all that detectors are to be silent at, [d, d] float64.

    Args:
        covariance: E[x x^T] at prompts; `texts`: x at tokens of running text, [n, d], if there is any.
    """
    if not len(texts):
        return covariance.double()
    rows = texts.double()
    return (1 - TEXTS) * covariance.double() + TEXTS * rows.T @ rows / len(rows)


def _normal(covariance: Tensor, subjects: Keys) -> tuple[Tensor, Tensor]:
    """(the regression's normal matrix, [d, d]; the subjects' keys, weighed, [d, n]), float64."""
    rows = subjects.rows.double()
    weighed = rows.T * subjects.weight.double()
    return weighed @ rows + WEIGHT * _ridged(covariance), weighed


def _ridged(covariance: Tensor) -> Tensor:
    ridged = covariance.double().clone()
    ridged.diagonal().add_(RIDGE * ridged.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return ridged
