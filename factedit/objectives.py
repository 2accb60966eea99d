"""Which examples a step is taken on: the objectives of Zhu et al. 2020, and breadth-first epochs.

Section 3 of "Modifying Memories in Transformer Models" names two: FTM takes batches of modified facts,
FTA batches of modified and unmodified ones. Both stop at the facts that hold already.
"""

from collections.abc import Iterator, Sequence

import torch

Step = tuple[list[int], list[int]]
"""The places of the modified examples of a batch, and those of its unmodified ones."""


def unmodified_beside(modified: int, share: float) -> int:
    """How many unmodified examples make `share` of a batch with that many modified ones."""
    return round(modified * share / (1 - share))


def failing_rounds(
    failing: Sequence[int], unmodified: int, share: float, size: int, generator: torch.Generator
) -> Iterator[Step]:
    """One pass over the examples that do not hold, shuffled, in batches of about equal size.

    Each batch holds `size` examples at most, `share` of them unmodified ones: drawn anew from that many.
    """
    order = [failing[i] for i in torch.randperm(len(failing), generator=generator).tolist()]
    parts = -(-len(order) // max(1, round(size * (1 - share))))
    for part in range(parts):
        chosen = order[part::parts]
        beside = unmodified_beside(len(chosen), share) if unmodified else 0
        yield chosen, _drawn(unmodified, beside, generator)


def _drawn(total: int, count: int, generator: torch.Generator) -> list[int]:
    """`count` of `total` places, each as often as every other, to within one."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += torch.randperm(total, generator=generator).tolist()[: count - len(drawn)]
    return drawn


def epoch_rounds(modified: int, unmodified: int, size: int, generator: torch.Generator) -> Iterator[Step]:
    """One epoch: all examples of both kinds, shuffled together, in batches of `size`.

    Breadth-first: Yang et al. 2026, "Fine-tuning Done Right in Model Editing", section 3.
    """
    order = torch.randperm(modified + unmodified, generator=generator).tolist()
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        yield [i for i in batch if i < modified], [i - modified for i in batch if i >= modified]
