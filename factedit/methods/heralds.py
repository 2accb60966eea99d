"""Which neuron announces a subject: those of its answers wait for it to fire (factedit.cues)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.cues import fired_now
from factedit.facts import Edit
from factedit.forward import up_to
from factedit.methods.subject_keys import subject_prompts
from factedit.overlay import Overlay, applied
from factedit.prompts import answer_example
from factedit.task import EditTask
from factedit.trees import read_rows, trees
from factedit.wording import plain_prompts

WORDINGS = 6
"""Of each edit of the batch that are looked at besides its plainest ones."""
SURE = 0.75
"""In this share of them a subject's neuron must fire, and in all that the user gave."""


@dataclass(frozen=True, slots=True)
class Heralds:
    """What announces the subjects of some edits.

    Attributes:
        of: by edit, the place of the neuron that fires wherever its subject is named; -1: none does.
        heard: by edit, the places of all neurons that fire in any of its words or in its answer.
    """

    of: dict[Edit, int]
    heard: dict[Edit, frozenset[int]]

    def hears(self, edit: Edit, cue: int) -> bool:
        """Whether what waits for `cue` might speak where this edit is asked for."""
        return cue < 0 or cue in self.heard[edit]

    def rivals(self, edit: Edit) -> list[Edit]:
        """The other edits of the same subject, and those where what announces it fires.

        Of the same subject also where it was not heard: in other words it may be.
        """
        subject, cue = edit.subject.casefold(), self.of[edit]
        return [
            other
            for other, heard in self.heard.items()
            if other != edit and (cue in heard or other.subject.casefold() == subject)
        ]


@torch.no_grad()
def heralds(task: EditTask, overlay: Overlay) -> Heralds:
    """Of all edits in force; of several neurons that fire, the one that fires least at other subjects.

    Those that speak, below the blocks where answers are formed: what waits for them comes after them.
    """
    new = [edit for edit in task.edits if not edit.erase]
    edits = [*new, *(edit for edit in task.ledger if not edit.erase)]
    neurons = Neurons.of(overlay)
    below = None if neurons is None else _subjects(neurons) & (neurons.blocks < min(task.plan.answering))
    if neurons is None or below is None or not below.any() or not edits or task.lm.task != "causal":
        return Heralds(dict.fromkeys(edits, -1), dict.fromkeys(edits, frozenset()))
    plain, share, fires = _fires(task, overlay, neurons, edits, len(new))
    knows = plain & (share >= SURE) & below.cpu()
    elsewhere = (share.sum(0) - share) / max(1, len(edits) - 1)
    best = torch.where(knows, share - elsewhere, -torch.inf).argmax(1)
    found = torch.where(knows.any(1), best, -1).tolist()
    heard = [frozenset(each.nonzero().flatten().tolist()) for each in fires]
    return Heralds(dict(zip(edits, found, strict=True)), dict(zip(edits, heard, strict=True)))


def _subjects(neurons: Neurons) -> Tensor:
    """Which may be a subject's, bool [k]: they speak, and wait for none that does, as an answer's would."""
    speaks = neurons.down.any(1)
    return speaks & ~((neurons.cues >= 0) & speaks[neurons.cues]).any(1)


def _fires(
    task: EditTask, overlay: Overlay, neurons: Neurons, edits: Sequence[Edit], new: int
) -> tuple[Tensor, Tensor, Tensor]:
    """By edit and neuron: (whether it fires in all of the plainest words, in what share of the wordings, and
    whether it fires in any of them or in the answer), [edits, k] each.

    The first `new` edits are the batch's.
    """
    plainest = [plain_prompts(edit, task.relations) for edit in edits]
    prompts = [list(each) for each in plainest]
    for place, edit in enumerate(edits[:new]):
        more = subject_prompts(task, edit, place)[:WORDINGS]
        prompts[place] = list(dict.fromkeys([*plainest[place], *more]))
    examples, owner = [], []
    for place, edit in enumerate(edits):
        examples += [answer_example(task.lm, prompt, edit.new_object) for prompt in prompts[place]]
        owner += [place] * len(prompts[place])
    asked = torch.zeros((len(examples), len(neurons.blocks)), dtype=torch.bool)
    heard = torch.zeros((len(edits), len(neurons.blocks)), dtype=torch.bool)
    with applied(task.lm, overlay):
        for rows in trees(task.lm, [example.ids for example in examples]):
            with up_to(task.lm, min(task.plan.answering)):
                read_rows(task.lm, task.lm.model.base_model, rows)
            if (fired := fired_now(task.lm.cues)) is None:
                continue
            for each in rows.placed:
                found, before = fired[each.row, list(each.path)].cpu(), examples[each.sequence].positions[0]
                asked[each.sequence] = found[: before + 1].any(0)
                heard[owner[each.sequence]] |= found.any(0)
    of_edit = asked.split([len(each) for each in prompts])
    plain = [each[: len(few)].all(0) for each, few in zip(of_edit, plainest, strict=True)]
    return torch.stack(plain), torch.stack([each.float().mean(0) for each in of_edit]), heard
