"""Which neuron announces a subject: those of its answers wait for it to fire (factedit.cues)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.cues import fired_now
from factedit.facts import Edit
from factedit.forward import block_input
from factedit.methods.subject_keys import subject_prompts
from factedit.overlay import Overlay, applied
from factedit.prompts import batches, next_token_example
from factedit.task import EditTask
from factedit.wording import plain_prompts

WORDINGS = 6
"""Of each edit of the batch that are looked at, the plainest first; of the ledger's, its plainest ones."""
SURE = 0.75
"""In this share of them a subject's neuron must fire, the plainest among them."""


@dataclass(frozen=True, slots=True)
class Heralds:
    """What announces the subjects of some edits.

    Attributes:
        of: by edit, the place of the neuron that fires wherever its subject is named; -1: none does.
        heard: by edit, the places of all neurons that fire in any of its words.
    """

    of: dict[Edit, int]
    heard: dict[Edit, frozenset[int]]

    def hears(self, edit: Edit, cue: int) -> bool:
        """Whether what waits for `cue` might speak where this edit is asked for."""
        return cue < 0 or cue in self.heard[edit]


@torch.no_grad()
def heralds(task: EditTask, overlay: Overlay) -> Heralds:
    """Of all edits in force; of several neurons that fire, the one that fires least at other subjects.

    Those below the blocks where answers are formed: what waits for them comes after them.
    """
    new = [edit for edit in task.edits if not edit.erase]
    edits = [*new, *(edit for edit in task.ledger if not edit.erase)]
    neurons = Neurons.of(overlay)
    below = None if neurons is None else (neurons.cues < 0) & (neurons.blocks < min(task.plan.answering))
    if neurons is None or below is None or not below.any() or not edits or task.lm.task != "causal":
        return Heralds(dict.fromkeys(edits, -1), dict.fromkeys(edits, frozenset()))
    plain, share = _shares(task, overlay, neurons, edits, len(new))
    knows = plain & (share >= SURE) & below.cpu()
    elsewhere = (share.sum(0) - share) / max(1, len(edits) - 1)
    best = torch.where(knows, share - elsewhere, -torch.inf).argmax(1)
    found = torch.where(knows.any(1), best, -1).tolist()
    heard = [frozenset(each.nonzero().flatten().tolist()) for each in share]
    return Heralds(dict(zip(edits, found, strict=True)), dict(zip(edits, heard, strict=True)))


def _shares(
    task: EditTask, overlay: Overlay, neurons: Neurons, edits: Sequence[Edit], new: int
) -> tuple[Tensor, Tensor]:
    """(whether each neuron fires in an edit's plainest words, the share of its wordings), [edits, k] each.

    The first `new` edits are the batch's.
    """
    prompts = [
        subject_prompts(task, edit, place)[:WORDINGS] if place < new else plain_prompts(edit, task.relations)
        for place, edit in enumerate(edits)
    ]
    examples = [next_token_example(task.lm, prompt) for each in prompts for prompt in each]
    owner = [(place, number) for place, each in enumerate(prompts) for number in range(len(each))]
    size = len(edits), len(neurons.blocks)
    plain, share = torch.zeros(size, dtype=torch.bool), torch.zeros(size)
    with applied(task.lm, overlay):
        for batch in batches(task.lm, examples, 64):
            block_input(task.lm, batch, min(task.plan.answering))
            if (fired := fired_now(task.lm.cues)) is None:
                continue
            for row, example in enumerate(batch.index.tolist()):
                place, number = owner[example]
                fires = fired[row, : len(examples[example].ids)].any(0).cpu()
                plain[place] |= fires if number == 0 else False
                share[place] += fires / len(prompts[place])
    return plain, share
