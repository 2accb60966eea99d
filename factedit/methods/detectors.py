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

    def of(self, some: Tensor) -> "Keys":
        """Those of some owners alone, bool [count]."""
        mine = (self.owner >= 0) & some[self.owner]
        return Keys(self.rows[mine], self.owner[mine], self.weight[mine])


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
    shared = torch.cat([subjects.rows, others.rows[others.owner < 0]]).double()
    nobodys = torch.full((len(shared) - len(subjects.rows),), -1, device=shared.device)
    owner = torch.cat([subjects.owner, nobodys])
    near = [others.rows[others.owner == place].double() for place in range(count)]
    found = [_Detector(inverse, solved[:, place], owner == place, near[place]) for place in range(count)]
    wrong = found
    for _ in range(ROUNDS):
        if not wrong:
            break
        # Of all detectors at once: products with one of them alone wait for the memory.
        rows = torch.stack([each.row for each in wrong])
        said, heard = shared @ rows.T, texts @ rows.T.to(texts.dtype) > AT_MOST
        mended = [each.mend(shared, said[:, n], texts, heard[:, n]) for n, each in enumerate(wrong)]
        wrong = [each for each, more in zip(wrong, mended, strict=True) if more]
    return torch.stack([each.row for each in found])


class _Detector:
    """One that weighs more and more what it is wrong about.

    Attributes:
        row: what it is by now, [d] float64.
    """

    def __init__(self, inverse: Tensor, solved: Tensor, own: Tensor, near: Tensor) -> None:
        """
        Args:
            inverse: of the regression's normal matrix, [d, d]; more weight is a low-rank change of it
                (Woodbury). `solved`: the solution so far.
            own: which of the rows that all must be right about are its own, [n] bool.
            near: rows that it must not answer to, [m, d].
        """
        self.row = self._solved = solved
        self._inverse, self._own, self._near = inverse, own, near
        self._heard: Tensor | None = None  # which of the texts' tokens it has answered to
        self._weights = solved.new_zeros(len(own) + len(near))
        # Rows that weigh something: their places among the weights; each is multiplied by the inverse once.
        self._heavy: list[int] = []
        self._rows, self._spread = inverse[:0], inverse[:, :0]

    def mend(self, shared: Tensor, said: Tensor, texts: Tensor, heard: Tensor) -> bool:
        """A round; False if it was right about everything already.

        Args:
            said: of the shared rows; `heard`: whether too much was said of a token of the texts.
        """
        new = heard if self._heard is None else heard & ~self._heard
        self._heard = new if self._heard is None else self._heard | new
        self._near = torch.cat([self._near, texts[new].double()])
        more = len(self._own) + len(self._near) - len(self._weights)
        self._weights = torch.cat([self._weights, self._weights.new_zeros(more)])
        of_own = torch.where(self._own, said < AT_LEAST, said > AT_MOST)
        wrong = torch.cat([of_own, self._near @ self.row > AT_MOST])
        if not bool(wrong.any()):
            return False
        self._take((wrong & (self._weights == 0)).nonzero().flatten(), shared)
        doubled = (2 * self._weights).clamp(FIRST_WEIGHT, LAST_WEIGHT)
        self._weights = torch.where(wrong, doubled, self._weights)
        root = self._weights[self._heavy].sqrt()
        inner = root[:, None] * (self._rows @ self._spread) * root
        inner.diagonal().add_(1)
        wanted = torch.cat([self._own, self._own.new_zeros(len(self._near))])[self._heavy]
        missing = wanted.double() - self._rows @ self._solved
        self.row = self._solved + self._spread @ (root * torch.linalg.solve(inner, root * missing))
        return True

    def _take(self, places: Tensor, shared: Tensor) -> None:
        beyond = len(self._own)
        rows = torch.cat([shared[places[places < beyond]], self._near[places[places >= beyond] - beyond]])
        self._heavy += places.tolist()
        self._rows = torch.cat([self._rows, rows])
        self._spread = torch.cat([self._spread, self._inverse @ rows.T], 1)


def silent_at(covariance: Tensor, texts: Tensor | None) -> Tensor:
    """E[x x^T] of all that detectors are to be silent at, [d, d] float64.

    Args:
        covariance: that at prompts; `texts`: that at tokens of running text, if there is any.
    """
    prompts = covariance.double()
    return prompts if texts is None else (1 - TEXTS) * prompts + TEXTS * texts


def _normal(covariance: Tensor, subjects: Keys) -> tuple[Tensor, Tensor]:
    """(the regression's normal matrix, [d, d]; the subjects' keys, weighed, [d, n]), float64."""
    rows = subjects.rows.double()
    weighed = rows.T * subjects.weight.double()
    return weighed @ rows + WEIGHT * _ridged(covariance), weighed


def _ridged(covariance: Tensor) -> Tensor:
    ridged = covariance.double().clone()
    ridged.diagonal().add_(RIDGE * ridged.diagonal().mean() + torch.finfo(torch.float64).tiny)
    return ridged
