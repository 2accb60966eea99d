"""AlphaEdit: MEMIT's values, written only into what the background does not use.

Source: Fang et al. 2025, "AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models".
"""

from torch import Tensor

from factedit.methods.least_squares import in_null_space, null_space
from factedit.methods.memit import SEARCH, spread
from factedit.methods.weights import background_covariance, one_matrix_a_block
from factedit.task import Edited, EditingError, EditTask

SHARE = 0.05
"""The least used directions that together carry this share of the background's energy are its null space."""
RIDGE = 0.01


def edit_by_alphaedit(task: EditTask) -> Edited:
    """As MEMIT, with each change projected onto the null space of the background's covariance."""
    covariance = background_covariance(task, one_matrix_a_block(task), damping=0.0)
    bases = {name: null_space(c, SHARE) for name, c in covariance.items()}
    full = [name for name, basis in bases.items() if basis.shape[1] == 0]
    if full:
        raise EditingError(f"The background uses every direction of {full[0]}; use memit.")

    def solve(name: str, keys: Tensor, kept: Tensor, residuals: Tensor) -> Tensor:
        return in_null_space(bases[name], RIDGE, keys, kept, residuals)

    return spread(task, solve, SEARCH)
