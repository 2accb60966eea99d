"""Which blocks an edit may change."""

from factedit.specs import Blocks


class NoSuchBlock(ValueError):
    """A block index that the model does not have."""


def choose_blocks(n_blocks: int, wanted: Blocks, depth: tuple[float, float]) -> list[int]:
    """The chosen blocks' indices, ascending, each once; for `auto`, those in a range of relative depth.

    Raises:
        NoSuchBlock: an index that is not below `n_blocks`.
    """
    if wanted == "first":
        return [0]
    if wanted == "last":
        return [n_blocks - 1]
    if wanted == "auto":
        first, last = (round(share * (n_blocks - 1)) for share in depth)
        return list(range(first, last + 1))
    outside = [block for block in wanted if not 0 <= block < n_blocks]
    if outside:
        raise NoSuchBlock(f"The model has blocks 0 to {n_blocks - 1}; there is no block {outside[0]}.")
    return sorted(set(wanted))
