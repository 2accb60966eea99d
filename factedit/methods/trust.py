"""Which neurons can be trusted: they fire at their own positions, and nearly nowhere else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from factedit.methods.answer_contexts import Formed, Mistake
from factedit.methods.recognisers import Reading

KNOWN = 0.75
"""A neuron that fires in its plainest words, and in this share of all that it is told, knows its position."""
ANYWHERE = 1e-4
"""A neuron that fires at more of running text than this share is not trusted."""


def trusted(own: Reading, unseen: Reading, texts: Tensor, gate: Tensor, mistaken: float) -> Tensor:
    """Which neurons, [n, d], know their own positions, and them from nearly everything else, bool [n].

    Args:
        own: where each is to fire, in its plainest words first; `unseen`: where it is not to, at more than a
            share of `mistaken`.
        texts: what enters their MLP at tokens of running text, [N, d].
    """
    anywhere = (texts @ gate.float().T > 0).float().mean(0)
    plain = torch.zeros(len(gate), dtype=torch.bool, device=gate.device)
    for place, entering in _plainest(own).items():
        plain[place] = bool((entering * gate[place]).sum() > 0)
    return plain & (_opens(own, gate) >= KNOWN) & (_opens(unseen, gate) <= mistaken) & (anywhere <= ANYWHERE)


def _plainest(own: Reading) -> dict[int, Tensor]:
    """By neuron, what enters its MLP in its plainest words; none where its token is nowhere to follow."""
    first: dict[int, Tensor] = {}
    for context, entering in zip(own.contexts, own.entering, strict=True):
        first.setdefault(context.edit, entering)
    return first


def _opens(at: Reading, gate: Tensor) -> Tensor:
    """At what share of its contexts each neuron's gate, [n, d], is open, [n]."""
    count, total = (torch.zeros(len(gate), device=gate.device) for _ in range(2))
    owner = at.keys().owner
    opened = ((at.entering * gate[owner]).sum(1) > 0).float()
    count.index_add_(0, owner, opened)
    total.index_add_(0, owner, torch.ones_like(opened))
    return count / total.clamp_min(1)


def in_the_way(at: Reading, formed: Sequence[Formed], mine: Sequence[Mistake], gate: Tensor) -> Tensor:
    """Which neurons, one a mistake, are open where another edit's answer wants another token, bool [n].

    Args:
        at: where the answers of edits in force are formed, `formed` saying which.
    """
    targets = [context.example.targets[0] for context in at.contexts]
    token = {(edit, place): target for (edit, place, _), target in zip(formed, targets, strict=True)}
    wanted = [(mistake.edit, token.get((mistake.edit, mistake.place))) for mistake in mine]
    others = [
        [edit != own and target != other for own, other in wanted]
        for (edit, _, _), target in zip(formed, targets, strict=True)
    ]
    opened = at.entering @ gate.float().T > 0
    return (opened & torch.tensor(others, dtype=torch.bool, device=opened.device)).any(0)
