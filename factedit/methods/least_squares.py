"""The equations of the closed-form editors: keys and wanted changes in, a change of a matrix out.

Keys are rows, [n, d_in]; wanted changes of the matrix's output are rows, [n, d_out]; a change of
the matrix is [d_out, d_in]. All in float64 inside and float32 outside.
"""

import torch
from torch import Tensor


def unused_directions(covariance: Tensor, keys: Tensor) -> Tensor:
    """C^-1 key for each key, [n, d_in] float64: the key, less what the background uses.

    Args:
        covariance: E[x x^T] of the background, [d_in, d_in], positive definite.
    """
    factor = torch.linalg.cholesky(covariance.double())
    return torch.cholesky_solve(keys.double().T, factor).T


def rank_one(direction: Tensor, key: Tensor, residual: Tensor) -> Tensor:
    """The change D with D key = residual that moves the background least (ROME).

    D = residual (C^-1 key)^T / (key^T C^-1 key), where `direction` is C^-1 key.

    Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", equation 2.
    """
    change = torch.outer(residual.double(), direction / (key.double() @ direction))
    return change.float()


def protected(covariance: Tensor, weight: float, keys: Tensor, kept: Tensor, residuals: Tensor) -> Tensor:
    """D = R^T K (weight C + K^T K + K'^T K')^-1, with K' the kept keys, whose residual is zero (MEMIT).

    Source: Meng et al. 2023, "Mass-Editing Memory in a Transformer", equation 14.
    """
    k, r = keys.double(), residuals.double()
    gram = weight * covariance.double() + k.T @ k + kept.double().T @ kept.double()
    change: Tensor = torch.linalg.solve(gram, k.T @ r)
    return change.T.float()


def null_space(covariance: Tensor, share: float) -> Tensor:
    """An orthonormal basis of what the background hardly uses, [d_in, r] float64 (AlphaEdit).

    Source: Fang et al. 2025, "AlphaEdit: Null-Space Constrained Knowledge Editing", section 3.2. Theirs are
    the eigenvalues below a fixed one; a share means the same whatever the model's scale.

    Args:
        share: of the background's energy (the sum of the eigenvalues), which the basis may carry at most.
    """
    values, vectors = torch.linalg.eigh(covariance.double())  # the smallest first
    carried = values.clamp_min(0).cumsum(0) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    basis: Tensor = vectors[:, carried <= share]
    return basis


def in_null_space(basis: Tensor, ridge: float, keys: Tensor, kept: Tensor, residuals: Tensor) -> Tensor:
    """D = R^T K P (K^T K P + K'^T K' P + L I)^-1 with P = basis basis^T, solved inside the basis.

    Source: Fang et al. 2025, equation 14.

    Args:
        ridge: L, as a share of the mean squared length of the projected keys.
    """
    k, old = keys.double() @ basis, kept.double() @ basis
    gram = k.T @ k + old.T @ old
    gram.diagonal().add_(ridge * k.square().sum(1).mean() + torch.finfo(gram.dtype).tiny)
    inside: Tensor = torch.linalg.solve(gram, k.T @ residuals.double())
    return (basis @ inside).T.float()


def ridge_regression(keys: Tensor, kept: Tensor, values: Tensor, ridge: float) -> Tensor:
    """D = V^T H (H^T H + H'^T H' + ridge I)^-1 (UltraEdit), by whichever of the two sides is smaller.

    Source: Gu et al. 2025, "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in
    Language Models", section 3.
    """
    rows = torch.cat([keys, kept]).double()
    wanted = torch.cat([values, values.new_zeros((len(kept), values.shape[1]))]).double()
    if len(rows) < rows.shape[1]:  # H^T (H H^T + ridge I)^-1 V is the same
        gram = rows @ rows.T
        gram.diagonal().add_(ridge)
        change: Tensor = rows.T @ torch.linalg.solve(gram, wanted)
    else:
        gram = rows.T @ rows
        gram.diagonal().add_(ridge)
        change = torch.linalg.solve(gram, rows.T @ wanted)
    return change.T.float()


class RunningMoments:
    """Mean and standard deviation of all rows seen so far, turn after turn (UltraEdit's normalisation).

    Source: Gu et al. 2025, section 3; the update is Chan et al. 1979's.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._squares = torch.zeros(width, dtype=torch.float64, device=device)

    def update(self, rows: Tensor) -> None:
        """Add rows, [n, width]."""
        if not len(rows):
            return
        rows = rows.double()
        total = self.count + len(rows)
        apart = rows.mean(0) - self.mean
        self._squares += (rows - rows.mean(0)).square().sum(0)
        self._squares += apart.square() * self.count * len(rows) / total
        self.mean = self.mean + apart * len(rows) / total
        self.count = total

    @property
    def std(self) -> Tensor:
        """Unbiased; zero before two rows were seen."""
        return (self._squares / max(1, self.count - 1)).sqrt()

    def normalise(self, rows: Tensor) -> Tensor:
        """Rows in standard deviations from the mean; zero in a column that does not vary."""
        std = self.std
        scale = torch.where(std > 0, 1 / std.clamp_min(torch.finfo(std.dtype).tiny), 0.0)
        return ((rows.double() - self.mean) * scale).to(rows.dtype)
