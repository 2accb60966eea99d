"""What tells what is asked of a subject from whatever else may be asked of it: linear detectors.

A neuron that waits for its subject (factedit.methods.heralds) knows whom something is said of; it has only
to know what is asked. A detector that is fitted to a few wordings, and to a few of other relations, knows
these by heart and takes half of all others for its own. So it is led by the direction in which its own
wordings differ from what is asked of anybody, whitened by how that varies, which generalises; what comes out
wrong even so is mended in directions that nothing else uses.

Sources: Fisher 1936, "The use of multiple measurements in taxonomic problems", for the direction; it is
shrunk as in Friedman 1989, "Regularized Discriminant Analysis".
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.methods.detectors import Keys

SHRUNK = 3.0
"""Added to the diagonal of the covariance of what is asked, in units of its mean."""
OWN, OTHERS, ELSEWHERE = 0.9, 0.2, 0.4
"""What a detector is to say at least of its own positions, and at most where others are formed, if it was
told of them, and of questions for something else, of anybody; 1 is what it says of its own in the mean, 0 of
all that is asked. The last is not too little: some of it is said in much the same words."""
ROUNDS = 3
TOLERANCE, UNUSED, ELSE_READ = 0.3, 1e-2, 0.1
"""Of mending: how far from these it may stay, and what counts as unused, both as shares of a mean; and the
share of whatever else is read, beside what is asked, in what is used. Without any, questions after which an
answer is announced ("Answer:") are all taken for others' (benchmarks/RESULTS.md)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What enters an MLP where answers begin, whatever is asked of anybody: float64.

    rows: [n, d], one a question; mean: [d]; covariance: [d, d].
    """

    rows: Tensor
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Asked":
        double = rows.double()
        return cls(double, double.mean(0), torch.cov(double.T))

    def second_moment(self) -> Tensor:
        """E[x x^T], [d, d]."""
        return self.covariance + torch.outer(self.mean, self.mean)


def told_apart(
    asked: Asked, used: Tensor, own: Keys, others: Keys, count: int, elsewhere: Tensor | None = None
) -> Tensor:
    """A direction w for each neuron, [count, d] float64: w . x is about 1 at its own positions, else little.

    Nobody's positions (of owner -1) are left out, and a neuron with none of its own has no direction: zeros.

    Args:
        used: E[x x^T] of whatever else is read, [d, d] float64.
        own, others: positions at which the neuron in the place of their owner is to fire, and is not to.
        elsewhere: which questions ask for something else than each neuron's edit, bool [count, n]; None: that
            is known of none.
    """
    whitened = torch.linalg.inv(_raised(asked.covariance, SHRUNK))
    both = (1 - ELSE_READ) * _scaled(asked.second_moment()) + ELSE_READ * _scaled(used)
    unused = torch.linalg.inv(_raised(both, UNUSED))
    found = [asked.mean.new_zeros(0, len(asked.mean))]
    each = zip(_of_each(own, count), _of_each(others, count), strict=True)
    for place, ((mine, weight), (theirs, _)) in enumerate(each):
        if not len(mine):
            found.append(asked.mean.new_zeros(1, len(asked.mean)))
            continue
        more = asked.rows[:0] if elsewhere is None else asked.rows[elsewhere[place]]
        most = asked.mean.new_tensor([OTHERS] * len(theirs) + [ELSEWHERE] * len(more))
        row = _between(asked, whitened, mine, weight)
        found.append(_mended(row, unused, asked.mean, mine, torch.cat([theirs, more]), most)[None])
    return torch.cat(found)


def _of_each(keys: Keys, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for place in range(count):
        yield keys.rows[keys.owner == place].double(), keys.weight[keys.owner == place].double()


def _between(asked: Asked, whitened: Tensor, own: Tensor, weight: Tensor) -> Tensor:
    """From the mean of what is asked to one's own, and nothing of that mean itself: no offset is needed."""
    mean = weight @ own / weight.sum()
    towards, away = whitened @ mean, whitened @ asked.mean
    row = towards - (towards @ asked.mean) / (away @ asked.mean) * away
    return row / (row @ mean)


def _mended(
    row: Tensor, unused: Tensor, nothing: Tensor, own: Tensor, others: Tensor, most: Tensor
) -> Tensor:
    """`row`, moved as little as can be in what is used, until it says enough of its own and little of others.

    nothing: [d], of which it is to say nothing; most: what it may say of each of `others`, [n].
    """
    for _ in range(ROUNDS):
        little, much = (OWN - own @ row).clamp_min(0), (others @ row - most).clamp_min(0)
        if not bool(little.any() or much.any()):
            break
        wrong = torch.cat([own[little > 0], others[much > 0], nothing[None]])
        missing = torch.cat([little[little > 0], -much[much > 0], -(nothing @ row)[None]])
        spread = wrong @ unused
        row = row + torch.linalg.solve(_raised(spread @ wrong.T, TOLERANCE), missing) @ spread
    return row


def _scaled(symmetric: Tensor) -> Tensor:
    """To a diagonal of 1 in the mean."""
    return symmetric / symmetric.diagonal().mean().clamp_min(torch.finfo(symmetric.dtype).tiny)


def _raised(symmetric: Tensor, share: float) -> Tensor:
    """With a share of its diagonal's mean added to the diagonal."""
    found = symmetric.clone()
    found.diagonal().add_(share * found.diagonal().mean() + torch.finfo(found.dtype).tiny)
    return found
