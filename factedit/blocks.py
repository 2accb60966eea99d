"""Which blocks an edit may change."""

from factedit.specs import Blocks

AUTO_DEPTH = (0.66, 0.83)
"""`auto`: the blocks in this range of relative depth, by measurement (benchmarks/RESULTS.md)."""


class NoSuchBlock(ValueError):
    """A block index that the model does not have."""


def choose_blocks(n_blocks: int, wanted: Blocks) -> list[int]:
    """The chosen blocks' indices, ascending, each once.

    Raises:
        NoSuchBlock: an index that is not below `n_blocks`.
    """
    if wanted == "first":
        return [0]
    if wanted == "last":
        return [n_blocks - 1]
    if wanted == "auto":
        first, last = (round(depth * (n_blocks - 1)) for depth in AUTO_DEPTH)
        return list(range(first, last + 1))
    outside = [block for block in wanted if not 0 <= block < n_blocks]
    if outside:
        raise NoSuchBlock(f"The model has blocks 0 to {n_blocks - 1}; there is no block {outside[0]}.")
    return sorted(set(wanted))
