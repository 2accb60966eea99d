"""Which neurons can be trusted: they fire at their own positions, and nearly nowhere else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from factedit.methods.answer_contexts import Formed, Mistake
from factedit.methods.recognisers import Reading, Recognisers, Words

KNOWN = 0.75
"""A neuron that fires in its plainest words, and in this share of all that it is told, knows its position."""
ANYWHERE = 1e-4
"""A neuron that fires at more of running text than this share is not trusted."""


def trusted(own: Reading, unseen: Reading, texts: Tensor, neurons: Recognisers, words: Words) -> Tensor:
    """Which neurons know their own positions, and them from nearly everything else, bool [n].

    Args:
        own: where each is to fire, in its plainest words first; `unseen`: where it is not to, at more than a
            share of `words.mistaken`.
        texts: what enters their MLP at tokens of running text, [N, d]; of no matter to those that wait.
    """
    knows = knowing(own, neurons.opened(own.entering))
    mistaken = torch.tensor(words.mistaken, device=knows.device)
    told = _share(unseen, neurons.opened(unseen.entering)) <= mistaken
    waits = knows.new_tensor(words.waits)
    if bool(waits.all()):
        return knows & told
    anywhere = neurons.opened(texts).float().mean(0)
    return knows & told & (waits | (anywhere <= ANYWHERE))


def knowing(own: Reading, opened: Tensor) -> Tensor:
    """Which of some neurons fire in their plainest words, the first of their own, and in most, bool [n].

    `opened`: where they fire, bool [contexts, n].
    """
    plain = torch.zeros(opened.shape[1], dtype=torch.bool, device=opened.device)
    first: dict[int, int] = {}  # none of a neuron whose token is nowhere to follow
    for at, context in enumerate(own.contexts):
        first.setdefault(context.edit, at)
    plain[list(first)] = opened[list(first.values()), list(first)]
    return plain & (_share(own, opened) >= KNOWN)


def _share(at: Reading, opened: Tensor) -> Tensor:
    """At what share of its contexts each neuron fires, [n]; `opened`: bool [contexts, n]."""
    owner = at.keys().owner
    mine = opened.gather(1, owner[:, None])[:, 0].float()
    count, total = (torch.zeros(opened.shape[1], device=opened.device) for _ in range(2))
    count.index_add_(0, owner, mine)
    total.index_add_(0, owner, torch.ones_like(mine))
    return count / total.clamp_min(1)


def in_the_way(
    at: Reading,
    formed: Sequence[Formed],
    mine: Sequence[Mistake],
    neurons: Recognisers,
    heard: Sequence[Sequence[bool]],
) -> Tensor:
    """Which neurons, one a mistake, fire where another edit's answer wants another token, bool [n].

    Args:
        at: where the answers of edits in force are formed, `formed` saying which.
        heard: whether there is heard what each neuron waits for, if it waits, [formed, n].
    """
    targets = [context.example.targets[0] for context in at.contexts]
    token = {(edit, place): target for (edit, place, _), target in zip(formed, targets, strict=True)}
    wanted = [(mistake.edit, token.get((mistake.edit, mistake.place))) for mistake in mine]
    others = [
        [may and edit != own and target != other for (own, other), may in zip(wanted, hears, strict=True)]
        for (edit, _, _), target, hears in zip(formed, targets, heard, strict=True)
    ]
    opened = neurons.opened(at.entering)
    return (opened & torch.tensor(others, dtype=torch.bool, device=opened.device)).any(0)
