"""Many continuations of one prompt in one pass: the prompt is read once, and none sees the others.

They lie behind one another in one sequence; a mask lets each see the prompt and itself, and each is told
the positions that it would have right after the prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.cues import in_order, seen_by
from factedit.forward import rows_gathered
from factedit.models import LanguageModel
from factedit.prompts import Batch, Example, collate

LENGTH = 64
"""Tokens that continuations add to a prompt at most; more of them begin another sequence."""

LIKE = 1.5
"""How many times as long as the shortest sequence of a batch its longest may be."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Branching:
    """A prompt and continuations of it, each of at least one token; their place in the list of all."""

    place: int
    prompt: Ids
    branches: tuple[Ids, ...]

    @property
    def ids(self) -> Ids:
        """What is read: nothing follows the last token of a continuation."""
        return (*self.prompt, *(token for branch in self.branches for token in branch[:-1]))


def totals(
    lm: LanguageModel, prompts: Sequence[Ids], branches: Sequence[Sequence[Ids]], batch_size: int
) -> list[list[float]]:
    """The log-probability (natural log) of each continuation of each prompt. For models that `can_branch`."""
    parts = [part for each in enumerate(zip(prompts, branches, strict=True)) for part in _parts(*each)]
    found: list[dict[Ids, float]] = [{} for _ in prompts]
    for some in _batches(parts, batch_size):
        scores = iter(_totals(lm, some))
        for part in some:
            for branch in part.branches:
                found[part.place][branch] = next(scores)
    return [[found[place][tuple(branch)] for branch in each] for place, each in enumerate(branches)]


def _parts(place: int, asked: tuple[Ids, Sequence[Ids]]) -> list[Branching]:
    prompt, branches = asked
    groups: list[list[Ids]] = [[]]
    room = LENGTH
    for branch in dict.fromkeys(tuple(branch) for branch in branches):
        if len(branch) - 1 > room and groups[-1]:
            groups.append([])
            room = LENGTH
        groups[-1].append(branch)
        room -= len(branch) - 1
    return [Branching(place, tuple(prompt), tuple(group)) for group in groups if group]


def _batches(parts: list[Branching], batch_size: int) -> Iterator[list[Branching]]:
    """Of like length: they differ much, and padding is computed too."""
    some: list[Branching] = []
    for part in sorted(parts, key=lambda part: len(part.ids)):
        if some and (len(some) == batch_size or len(part.ids) > len(some[0].ids) * LIKE):
            yield some
            some = []
        some.append(part)
    if some:
        yield some


@torch.inference_mode()
def _totals(lm: LanguageModel, parts: Sequence[Branching]) -> list[float]:
    """Of all continuations of all parts, one after another."""
    scores = branch_logits(lm, parts).float().log_softmax(-1)
    rows: list[int] = []
    tokens: list[int] = []
    owner: list[int] = []
    start = count = 0
    for part in parts:
        after = start  # the row of the prompt's last token, before those of the continuations
        for branch in part.branches:
            rows += [start, *range(after + 1, after + len(branch))]
            tokens += branch
            owner += [count] * len(branch)
            after += len(branch) - 1
            count += 1
        start = after + 1
    picked = scores[torch.tensor(rows, device=lm.device), torch.tensor(tokens, device=lm.device)].cpu()
    return [float(x) for x in torch.zeros(count).index_add_(0, torch.tensor(owner), picked)]


def branch_logits(lm: LanguageModel, parts: Sequence[Branching]) -> Tensor:
    """Logits after each part's prompt and after every token of its continuations but their last, [N, V]."""
    examples = []
    for part in parts:
        positions = tuple(range(len(part.prompt) - 1, len(part.ids)))
        examples.append(Example(part.ids, positions, (0,) * len(positions)))
    batch = collate(lm, examples, range(len(examples)))
    mask, places = _seen(parts, batch)
    unseen = torch.finfo(lm.model.dtype).min
    additive = torch.where(mask, 0.0, unseen).to(lm.device, lm.model.dtype)[:, None]
    with rows_gathered(lm, batch), in_order(seen_by(mask)):
        output = lm.model(
            input_ids=batch.input_ids,
            attention_mask=additive,
            position_ids=places.to(lm.device),
            use_cache=False,
        )
    logits: Tensor = output.logits
    return logits.squeeze(0)


def _seen(parts: Sequence[Branching], batch: Batch) -> tuple[Tensor, Tensor]:
    """Which tokens see which, bool [B, L, L]; the tokens' positions, [B, L]."""
    count, width = batch.input_ids.shape
    mask = torch.zeros(count, width, width, dtype=torch.bool)
    places = torch.zeros(count, width, dtype=torch.long)
    for row, part in enumerate(parts):
        start = len(part.prompt)
        mask[row, :, :start] = True
        mask[row, :start, :start] = torch.ones(start, start, dtype=torch.bool).tril()
        places[row, :start] = torch.arange(start)
        for branch in part.branches:
            size = len(branch) - 1
            own = slice(start, start + size)
            mask[row, own, own] = torch.ones(size, size, dtype=torch.bool).tril()
            places[row, own] = torch.arange(len(part.prompt), len(part.prompt) + size)
            start += size
    return mask, places


def can_branch(lm: LanguageModel) -> bool:
    """Whether this model says the same so as it does of each continuation alone: it is tried, once."""
    # Only a yes is kept: weights that yield no numbers are no reason to say no to the model for good.
    if lm.task == "causal" and not getattr(lm, "_can_branch", False):
        lm._can_branch = _tried(lm)  # type: ignore[attr-defined]
    return lm.task == "causal" and bool(lm._can_branch)  # type: ignore[attr-defined]


@torch.inference_mode()
def _tried(lm: LanguageModel) -> bool:
    size = lm.model.config.get_text_config().vocab_size
    prompt, left, right = (tuple((7919 * i + n) % size for i in range(n)) for n in (9, 4, 3))
    parts = [Branching(0, prompt, (left, right)), Branching(1, prompt[:5], (right,))]
    try:
        found = branch_logits(lm, parts).float()
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError):
        return False
    alone: list[Tensor] = []
    for part in parts:
        for branch in part.branches:
            ids = torch.tensor([(*part.prompt, *branch[:-1])], device=lm.device)
            rows = lm.model(input_ids=ids, use_cache=False).logits[0, len(part.prompt) - 1 :].float()
            alone.append(rows if branch is part.branches[0] else rows[1:])
    own = torch.cat(alone)
    own -= own.mean(-1, keepdim=True)
    found = found - found.mean(-1, keepdim=True)
    return bool((found - own).norm() < (1e-3 if lm.model.dtype == torch.float32 else 0.1) * own.norm())
