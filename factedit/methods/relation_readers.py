"""Neurons that read what is asked, in the middle of the model: those that answer wait for one.

Where answers are formed, the states of whatever is asked of an edited subject are alike: its own neuron has
spoken by then, and much that is there is about the next token. Lower down what is asked stands apart more
clearly, and what is wrong there is wrong elsewhere: two detectors that both must fire take half as many other
questions for their own as either, at the same share of unseen wordings (benchmarks/RESULTS.md). So a neuron
there that says nothing fires where an edit's answer is to begin, whoever it is said of, and the first token's
fires only together with it (factedit.added_neurons).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.facts import Edit
from factedit.gated_mlp import GatedMlp
from factedit.methods.answer_contexts import Mistake
from factedit.methods.neurons import silent
from factedit.methods.recognisers import WIDTH, Reading
from factedit.methods.relation_detectors import Asked, told_apart
from factedit.methods.trust import knowing
from factedit.models import LanguageModel
from factedit.task import Plan

THRESHOLD = 0.5
"""A reader fires where its detector exceeds it: that is 1 of its own words in the mean, 0 of all that is
asked."""


def asking_block(plan: Plan) -> int | None:
    """Where what is asked is read: above the middle of the blocks that look subjects up, if there are any."""
    blocks = plan.looking_up
    return blocks[len(blocks) // 2] if blocks else None


class Readers:
    """Of a round; none where nothing is read below.

    Attributes:
        of: by edit, the place of its reader among the version's neurons.
    """

    def __init__(self, mlp: GatedMlp | None, before: Neurons | None) -> None:
        """`mlp`: of the block in which they read; `before`: the version's neurons, which they follow."""
        self.of: dict[Edit, int] = {}
        self._mlp, self._before = mlp, before
        self._rows: list[Tensor] = []
        self._heard: list[list[int]] = []

    @torch.no_grad()
    def learn(
        self,
        mine: Sequence[Mistake],
        asks: Sequence[bool],
        waits: Sequence[int],
        own: Reading,
        others: Reading,
        asked: Mapping[str, Asked],
        elsewhere: Tensor | None,
    ) -> None:
        """One for each first token's edit, if it knows its words: the plainest, and most of the others.

        Args:
            asks: of which mistakes the neurons have only to know what is asked; `waits`: for which neurons
                they wait, their subjects'.
            own, others: where these are to fire, and are not to, by the places of their mistakes; both with
                what is read below.
            asked: what enters the matrices where anybody is asked anything, by name; `elsewhere`: which of
                these questions ask for something else than each, bool [mistakes, n].
        """
        if self._mlp is None or self._before is None or not any(asks):
            return
        first = torch.tensor(asks, device=own.entering.device)
        at, others = own.lower(), others.lower()
        rows = told_apart(asked[self._mlp.gate], at.keys().of(first), others.keys(), len(mine), elsewhere)
        knows = knowing(at, at.entering.double() @ rows.T > THRESHOLD) & first
        for place in knows.nonzero().flatten().tolist():
            if mine[place].edit not in self.of:
                self.of[mine[place].edit] = len(self._before.blocks) + len(self._rows)
                self._rows.append(rows[place])
                self._heard.append([cue for cue in self._before.cues[waits[place]].tolist() if cue >= 0])

    def neurons(self, lm: LanguageModel) -> Neurons | None:
        """They say nothing, and wait for the words of their subjects' names, as the subjects' own do."""
        if self._mlp is None or not self._rows:
            return None
        block = lm.block_of(self._mlp.gate)
        assert block is not None
        gate = (torch.stack(self._rows) / WIDTH).to(lm.model.dtype)
        return silent(gate, block, THRESHOLD / WIDTH, self._heard)
