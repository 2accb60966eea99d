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


def reading_block(n_blocks: int, wanted: Blocks, depth: float, looking_up: list[int]) -> int | None:
    """Which block reads the words of names, below those that look subjects up; of named blocks, none."""
    if wanted != "auto" or not looking_up:
        return None
    block = round(depth * (n_blocks - 1))
    return block if block < min(looking_up) else None


def lookup_blocks(
    n_blocks: int, wanted: Blocks, lookup_depth: tuple[float, float], depth: tuple[float, float]
) -> list[int]:
    """Which blocks look subjects up: for `auto` those of a range of relative depth, below all of `depth`'s.

    Of blocks that the caller names, all up to that range's end, if others lie above them, where the answer
    can be finished; else none.
    """
    if wanted == "auto":
        lower = choose_blocks(n_blocks, "auto", lookup_depth)
        return [block for block in lower if block < choose_blocks(n_blocks, "auto", depth)[0]]
    chosen = choose_blocks(n_blocks, wanted, depth)
    lower = [block for block in chosen if block <= round(lookup_depth[1] * (n_blocks - 1))]
    return lower if len(lower) < len(chosen) else []


def asking_blocks(wanted: Blocks, looking_up: list[int], answering: list[int]) -> list[int]:
    """Which blocks read what is asked: the lowest that looks subjects up, where none has been said anything
    yet; and for `auto` the one midway from these to where answers are formed."""
    if not looking_up or not answering:
        return []
    middle = (looking_up[-1] + answering[0]) // 2
    return sorted({looking_up[0], *([middle] if wanted == "auto" else [])})
