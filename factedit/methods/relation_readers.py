"""Neurons that read what is asked, below where it is answered: those of an answer wait for them.

Where answers are formed, the states of whatever is asked of an edited subject are alike: its own neuron has
spoken by then, and much of what is there is about the next token. What is asked stands out in lower blocks as
well, and what is mistaken there is not what is mistaken above: of several detectors that must all fire, half
as many other questions wake them all as wake one that knows as many unseen wordings (benchmarks/RESULTS.md).
So silent neurons in two lower blocks fire where an edit's answer is to begin, whoever it is said of, the
upper one only together with the lower, and the first token's only together with that
(factedit.added_neurons).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
from factedit.running_text import Entering

THRESHOLDS = 0.3, 0.45
"""What a detector must exceed in the lower and in the upper block: that is 1 of its own words in the mean, 0
of all that is asked. In the lower one, little has been gathered yet where an answer begins after a colon."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """`at`: the place of its block among those they read in; row: [d]; the others as `Neuron`'s."""

    at: int
    row: Tensor
    cues: list[int]
    together: int


class Readers:
    """Of a round, in some blocks; none of edits whose words they don't know."""

    def __init__(self, lm: LanguageModel, mlps: Sequence[GatedMlp], before: Neurons | None) -> None:
        """`mlps`: of the blocks, ascending; `before`: the version's neurons, which they follow."""
        self._lm, self._mlps, self._before = lm, mlps, before
        self._of: dict[Edit, list[int]] = {}
        self._every: list[_Reader] = []

    def last(self, edit: Edit) -> int:
        """The place of the one that fires where all of an edit's do; -1: it has none."""
        return self._of.get(edit, [-1])[-1]

    def surely(self, edit: Edit) -> bool:
        """Whether it has one in each of several blocks."""
        return len(self._of.get(edit, [])) == len(THRESHOLDS)

    @torch.no_grad()
    def learn(
        self,
        mine: Sequence[Mistake],
        asks: Sequence[bool],
        waits: Sequence[int],
        own: Reading,
        others: Reading,
        asked: Mapping[str, Asked],
        texts: Mapping[str, Entering],
        elsewhere: Tensor | None,
    ) -> None:
        """Those of each first token's edit that know its words: the plainest, and most of the others.

        Args:
            asks: of which mistakes the neurons have only to know what is asked; `waits`: for which neurons
                they wait, their subjects'.
            own, others: where these are to fire, and are not to, by the places of their mistakes; both with
                what is read below.
            asked, texts: what enters the matrices where anybody is asked anything, and in running text, by
                name; `elsewhere`: which of the questions ask for something else, bool [mistakes, n].
        """
        if self._before is None or not any(asks):
            return
        first, known = torch.tensor(asks, device=own.entering.device), set(self._of)
        for at, (mlp, threshold) in enumerate(zip(self._mlps, THRESHOLDS, strict=False)):
            here, theirs = own.lower(at), others.lower(at).keys()
            used = texts[mlp.gate].every(2).second_moment()
            if used is None:
                used = asked[mlp.gate].second_moment()
            rows = told_apart(asked[mlp.gate], used, here.keys().of(first), theirs, len(mine), elsewhere)
            knows = knowing(here, here.entering.double() @ rows.T > threshold) & first
            for place in knows.nonzero().flatten().tolist():
                if (edit := mine[place].edit) not in known:
                    self._add(edit, at, rows[place], self._before.cues[waits[place]])

    def _add(self, edit: Edit, at: int, row: Tensor, named: Tensor) -> None:
        """It waits for the words of the subject's name, as that one's own neuron does."""
        assert self._before is not None
        place, words = (
            len(self._before.blocks) + len(self._every),
            [cue for cue in named.tolist() if cue >= 0],
        )
        self._every.append(_Reader(at, row, words, together=self.last(edit)))
        self._of.setdefault(edit, []).append(place)

    def neurons(self) -> Neurons | None:
        """All of them."""
        every = self._every
        if not every:
            return None
        blocks = [self._lm.block_of(self._mlps[each.at].gate) or 0 for each in every]
        gate = (torch.stack([each.row for each in every]) / WIDTH).to(self._lm.model.dtype)
        thresholds = [THRESHOLDS[each.at] / WIDTH for each in every]
        found = silent(gate, blocks, thresholds, [each.cues for each in every])
        return replace(found, together=found.blocks.new_tensor([each.together for each in every]))
