"""Running text in which added neurons are to be silent, read as seldom as can be.

What enters a matrix while the root reads a text is the same for every edit: whoever keeps it for a root
(workers.background does) saves the most of a small edit's time.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

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
MOMENTS = 64
"""Second moments that are kept, the last ones: 2.7 MB each of SmolLM2's."""


class Moments:
    """E[x x^T] of what was read before, by what that was: a seventh of a small edit's time on a CPU."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def of(self, rows: Tensor, what: Hashable | None) -> Tensor:
        """That of rows [N, d], [d, d] float64; `what` is the same only for the same rows, or None."""
        if what is None or what not in self._kept:
            double = rows.double()
            found = double.T @ double / len(double)
            if what is None:
                return found
            self._kept[what] = found
            if len(self._kept) > MOMENTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(what)
        return self._kept[what]


@dataclass(frozen=True, slots=True)
class Entering:
    """What enters a matrix at tokens of some texts.

    Attributes:
        rows: float32 [N, d]. `what`: which rows they are, if others may have been the same (`Moments.of`).
    """

    rows: Tensor
    what: Hashable | None = None
    moments: Moments = field(default_factory=Moments)

    def every(self, step: int, first: int = 0) -> "Entering":
        """Of one token in `step`."""
        what = None if self.what is None else (self.what, step, first)
        return Entering(self.rows[first::step], what, self.moments)

    def second_moment(self) -> Tensor | None:
        """E[x x^T], [d, d] float64; None of no token."""
        return self.moments.of(self.rows, self.what) if len(self.rows) else None


@dataclass(frozen=True)
class RunningText:
    """Some texts, and how to have what enters matrices in them."""

    texts: Sequence[str]
    read: Read
    moments: Moments = field(default_factory=Moments)

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

        return RunningText([self.texts[place] for place in kept], read, self.moments)

    @torch.no_grad()
    def entering(self, lm: LanguageModel, names: Sequence[str], overlay: Overlay) -> dict[str, Entering]:
        """What enters matrices at all tokens of the texts with an overlay applied.

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
        whole = tuple(self.texts)
        return {
            name: Entering(
                torch.cat([nothing[name], *found[name]]).float(),
                None if again else (name, whole),
                self.moments,
            )
            for name in names
        }

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
