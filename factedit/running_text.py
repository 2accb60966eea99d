"""Running text in which added neurons are to be silent, read as seldom as can be.

What enters a matrix while the root reads a text is the same for every edit: whoever keeps it for a root
(workers.background does) saves the most of a small edit's time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.added_neurons import NAMES, Neurons, at_work
from factedit.cues import Cues
from factedit.curvature import inputs_of
from factedit.gated_mlp import gated_mlp
from factedit.models import LanguageModel
from factedit.overlay import Overlay, applied

Read = Callable[[Sequence[str]], dict[str, list[Tensor]]]
"""Given the names of matrices: by name, what enters it at every token of each text while the root reads it,
in the model's dtype, [tokens, d_in] each."""


@dataclass(frozen=True)
class RunningText:
    """Some texts, and how to have what enters matrices in them."""

    texts: Sequence[str]
    read: Read

    @classmethod
    def of(cls, lm: LanguageModel, texts: Sequence[str]) -> "RunningText":
        """Texts of which nothing is kept; to be read while no overlay is applied."""
        return cls(texts, lambda names: inputs_of(lm, names, texts))

    def but(self, left_out: Sequence[str]) -> "RunningText":
        """These texts without some."""
        spoken = set(left_out)
        kept = [place for place, text in enumerate(self.texts) if text not in spoken]

        def read(names: Sequence[str]) -> dict[str, list[Tensor]]:
            return {name: [each[place] for place in kept] for name, each in self.read(names).items()}

        return RunningText([self.texts[place] for place in kept], read)

    @torch.no_grad()
    def entering(self, lm: LanguageModel, names: Sequence[str], overlay: Overlay) -> dict[str, Tensor]:
        """What enters matrices at all tokens of the texts with an overlay applied, float32 [N, d_in] each.

        A text in which none of an overlay's neurons speaks is answered as by the root, so that only the
        others are read anew; all are, if it has more than neurons. To be called while no overlay is applied.
        """
        found, again = self._woken(lm, names, overlay)
        if again:
            with applied(lm, overlay):
                anew = inputs_of(lm, names, [self.texts[at] for at in again])
            for name in names:
                for at, rows in zip(again, anew[name], strict=True):
                    found[name][at] = rows
        # A first piece without rows: there may be no text at all.
        nothing = {name: lm.tensors[name].data[:0] for name in names}
        return {name: torch.cat([nothing[name], *found[name]]).float() for name in names}

    def _woken(
        self, lm: LanguageModel, names: Sequence[str], overlay: Overlay
    ) -> tuple[dict[str, list[Tensor]], list[int]]:
        """(by matrix, what enters it in each text as the root reads it; the texts read otherwise)."""
        if not overlay.keys() <= set(NAMES):
            every = range(len(self.texts))
            return {name: [torch.empty(0)] * len(every) for name in names}, list(every)
        neurons = Neurons.of(overlay)
        blocks = [] if neurons is None else neurons.blocks.unique().tolist()
        gates = {block: mlp.gate for block in blocks if (mlp := gated_mlp(lm, block)) is not None}
        found = self.read(list(dict.fromkeys([*names, *gates.values()])))
        woken: list[int] = []
        if neurons is not None:
            neurons = neurons.to(lm.device)
            by_block = [(neurons.of_block(b), (neurons.blocks == b).nonzero().flatten()) for b in gates]
            for at in range(len(self.texts)):
                if _speak(Cues(neurons.blocks), by_block, [found[name][at] for name in gates.values()]):
                    woken.append(at)
        return {name: [*found[name]] for name in names}, woken


def _speak(cues: Cues, by_block: Sequence[tuple[Neurons, Tensor]], entering: Sequence[Tensor]) -> bool:
    """Whether any neuron speaks in a text.

    Args:
        by_block: neurons and their places among all, blocks ascending; `entering`: what enters their MLP at
            each token of the text, [L, d] each.
    """
    for (mine, places), rows in zip(by_block, entering, strict=True):
        if (found := at_work(cues, mine, rows[None])) is None:
            continue
        some, fires = found
        if bool((fires[0].any(0) & mine.down[some].any(1)).any()):
            return True  # what enters the blocks above is another from here on
        cues.note(places[some], fires)
    return False
