"""By what a neuron fires: rows that answer to some keys and to nothing else, and how much they must say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from factedit.added_neurons import fire
from factedit.curvature import Covariance
from factedit.facts import Edit
from factedit.gated_mlp import GatedMlp
from factedit.methods.detectors import Keys, detectors, silent_at
from factedit.methods.keys import Context, read_ends
from factedit.methods.neurons import Neuron
from factedit.methods.relation_detectors import Asked, told_apart
from factedit.models import LanguageModel
from factedit.running_text import Entering

THRESHOLD, WIDTH = 0.45, 0.1
"""A subject's neuron fires where its two detectors, 1 at the subject and 0 elsewhere, exceed the threshold,
and wholly so far above it."""
LOWEST, HIGHEST, MARGIN = 0.4, 0.7, 0.03
"""An answer's opens at the lowest threshold between these that it can be trusted with, and a bit above."""
LOWEST_WAITING, ASKED, READ = 0.25, 0.55, 0.45
"""Of a neuron that waits for its subject's: it need only know the place; or what is asked, less surely where
others have read that below (factedit.methods.relation_readers)."""
IN_WORDS, IN_WORDS_WIDTH = 0.4, 0.2
"""Likewise for the detector of the words: it need not be sure."""
IN_WORDS_WAITING, IN_WORDS_READ, IN_WORDS_WAITING_WIDTH = 0.25, 0.1, 0.1
"""Of neurons that wait: whom the words are said of is known, and words less like those learnt may ask; still
less, where others have read what is asked."""
FAINTEST = 0.05
"""A neuron that fires less than this at its own keys knows them too badly to be amplified."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model computes at some contexts' lookups, in one block.

    Attributes:
        entering: what enters the block's MLP there, [n, d] float32.
        lengths: of the hidden vectors that leave the block, [n].
        below: what enters the MLPs of some lower blocks there, likewise.
    """

    contexts: list[Context]
    entering: Tensor
    lengths: Tensor
    below: tuple[Tensor, ...] = ()

    def between(self, start: int, end: int) -> "Reading":
        some = slice(start, end)
        below = tuple(rows[some] for rows in self.below)
        return Reading(self.contexts[some], self.entering[some], self.lengths[some], below)

    def lower(self, place: int) -> "Reading":
        """With what enters the MLP of one of the lower blocks instead."""
        return replace(self, entering=self.below[place], below=())

    def keys(self) -> Keys:
        device = self.entering.device
        owner = torch.tensor([c.edit for c in self.contexts], dtype=torch.long, device=device)
        weight = torch.tensor([c.weight for c in self.contexts], device=device)
        return Keys(self.entering, owner, weight)


def read_at(
    lm: LanguageModel, block: int, mlp: GatedMlp, *found: list[Context], below: Sequence[GatedMlp] = ()
) -> list[Reading]:
    """What the model computes at each list's lookups in `block`, whose MLP is `mlp`; all read together.

    `below`: the MLPs of lower blocks that are read in passing.
    """
    every = [context for each in found for context in each]
    gates = [each.gate.removesuffix(".weight") for each in (mlp, *below)]
    ends = [context.up_to_lookup().ids for context in every]
    inner = [lm.model.get_submodule(gate) for gate in gates]
    (entering, *lower), leaving = read_ends(lm, ends, inner, lm.blocks[block])
    whole = Reading(every, entering, leaving.norm(dim=1), tuple(lower))
    return [whole.between(start, end) for start, end in pairwise([0, *accumulate(map(len, found))])]


def joint(first: Reading, then: Reading) -> Reading:
    """Both, of the same blocks."""
    both = first, then
    entering, lengths = (
        torch.cat([getattr(each, part) for each in both]) for part in ("entering", "lengths")
    )
    below = tuple(map(torch.cat, zip(first.below, then.below, strict=True)))
    return Reading([*first.contexts, *then.contexts], entering, lengths, below)


@dataclass(frozen=True, slots=True)
class Words:
    """In which words neurons are to fire at all, whoever they are said of.

    Attributes:
        at: positions in them, `edit` being a group of words; `groups`: the group of each neuron, -1 for any.
        never: positions, of each neuron, that it opens above all that it says at, if that is below `HIGHEST`.
        unseen: likewise, at no more than its share of `mistaken` of which it may fire.
        waits: whether each neuron waits for another one to fire: what other texts it fires at is no matter.
        asks: which neurons have only to know what is asked: their subject is heard, and the answer begins;
            none has, if not given.
        asked: where answers begin, whatever is asked, if that is known; without it none may ask.
        elsewhere: which of these questions ask for something else than each neuron's edit, bool [count, n];
            None: that is known of none.
        read: which neurons fire only together with those that read what is asked; none does, if not given.
    """

    at: Reading
    groups: Sequence[int]
    never: Reading
    unseen: Reading
    mistaken: Sequence[float]
    waits: Sequence[bool]
    asks: Sequence[bool] = ()
    asked: Asked | None = None
    elsewhere: Tensor | None = None
    read: Sequence[bool] = ()

    def known(self) -> list[tuple[bool, bool]]:
        """(`asks`, `read`) of each neuron."""
        nothing = [False] * len(self.waits)
        return list(zip(self.asks or nothing, self.read or nothing, strict=True))


@dataclass(frozen=True, slots=True)
class Recognisers:
    """By what neurons fire: rows of theirs, [count, d] in the model's dtype, and thresholds, [count, 2].

    Attributes:
        length: `Neuron.length` of each (factedit.methods.neurons), [count].
    """

    gate: Tensor
    words: Tensor
    thresholds: Tensor
    length: Tensor

    def opened(self, entering: Tensor) -> Tensor:
        """Which neurons fire at what enters their MLP, [n, d]: bool [n, count]."""
        return _fires(entering, self.gate, self.words, self.thresholds) > 0

    def neuron(self, edits: list[Edit], block: int, place: int) -> Neuron:
        """The neuron in that place, of those edits."""
        known_by = self.gate[place], self.words[place], self.thresholds[place]
        return Neuron(edits, block, *known_by, float(self.length[place]))


@torch.no_grad()
def recognisers(
    lm: LanguageModel,
    mlp: GatedMlp,
    background: Covariance,
    texts: Entering,
    own: Reading,
    alike: Reading,
    count: int,
    besides: Words | Reading,
    rises: Sequence[float] = (),
) -> Recognisers:
    """Neurons that fire at `own`, which are as many as `count`.

    Args:
        background: of what enters the MLP, `mlp`, that is read.
        texts: what enters it at other tokens to which no neuron may answer.
        own: what each neuron is to fire at, `edit` being its place; -1: what none may fire at.
        alike: what a neuron might take for its own, likewise.
        besides: what the second condition of each is found by. Of subjects, which may stand in any words, it
            is another detector of the same, which has also heard namesakes, by their places: alone it would
            answer to more of everything else, having been told more that has nothing to do with it.
        rises: how far above its threshold each neuron fires wholly; `WIDTH` if not given.
    """
    keys = own.keys()
    worded = isinstance(besides, Words)
    shown = texts.every(2) if worded else texts
    seen, held = shown.rows, texts.every(2, 1).rows if worded else texts.rows
    mean = background.sums[mlp.gate].to(lm.device) / background.tokens
    silent = silent_at(mean, shown.second_moment())
    detect = detectors(silent, keys, alike.keys(), seen, count)
    if isinstance(besides, Words):
        asks = torch.tensor([asks for asks, _ in besides.known()], device=detect.device)
        if besides.asked is not None and bool(asks.any()):
            used = silent if (moment := shown.second_moment()) is None else moment
            apart = told_apart(besides.asked, used, keys.of(asks), alike.keys(), count, besides.elsewhere)
            detect = torch.where(asks[:, None], apart, detect)
        known = _of_words(silent, seen, besides, detect)
        lowest = _lowest(detect, known, held, besides)
        least, rise = _in_words(besides, detect)
        known, others = known / rise[:, None], least / rise
    else:
        known = detectors(silent, keys, joint(alike, besides).keys(), seen, count) / WIDTH
        lowest = detect.new_full((count,), THRESHOLD)
        others = lowest / WIDTH
    # Measured with the rounded rows, which the model will compute with.
    dtype = lm.tensors[mlp.gate].dtype
    width = detect.new_tensor(rises or [WIDTH] * count)
    gate, thresholds = detect / width[:, None], torch.stack([lowest / width, others], 1)
    rows = gate.to(dtype), known.to(dtype), thresholds.to(dtype)
    mine = keys.owner >= 0
    owner = keys.owner[mine]
    fires = _fires(keys.rows[mine], *rows).gather(1, owner[:, None])[:, 0]
    mean_fires = fires.new_zeros(count).index_add_(0, owner, fires * keys.weight[mine])
    lengths = [own.lengths[keys.owner == place].median() for place in range(count)]
    return Recognisers(*rows, torch.stack(lengths) / mean_fires.clamp_min(FAINTEST))


def _fires(entering: Tensor, gate: Tensor, words: Tensor, thresholds: Tensor) -> Tensor:
    return fire(entering, gate.float(), words.float(), thresholds.float())


def _of_words(silent: Tensor, texts: Tensor, words: Words, detect: Tensor) -> Tensor:
    """The detectors of each neuron's words, [count, d]; zeros where any words will do."""
    at, groups = words.at.keys(), words.groups
    nothing = Keys(at.rows[:0], at.owner[:0], at.weight[:0])
    count = max(groups) + 1
    found = detectors(silent, at, nothing, texts, count) if count else detect[:0]
    return torch.cat([found, 0 * detect[:1]])[torch.tensor(groups, device=detect.device)]


def _in_words(words: Words, like: Tensor) -> tuple[Tensor, Tensor]:
    """What the detectors of the words must exceed, below 0 where any will do, and how they rise, [count]."""
    least = [
        IN_WORDS_READ if read else IN_WORDS_WAITING if waits else IN_WORDS
        for (_, read), waits in zip(words.known(), words.waits, strict=True)
    ]
    rise = [IN_WORDS_WAITING_WIDTH if waits else IN_WORDS_WIDTH for waits in words.waits]
    anyhow = [-1.0 if group < 0 else above for group, above in zip(words.groups, least, strict=True)]
    return like.new_tensor(anyhow), like.new_tensor(rise)


def _lowest(detect: Tensor, known: Tensor, texts: Tensor, words: Words) -> Tensor:
    """The lowest threshold, [count], of each detector that what was not solved for lets it have.

    Above all that it says where its words are at tokens of text, unless it waits, and where it may never
    fire; and above nearly all that it says at what it is tried on, which is nothing where any words will do.
    """
    waits, (in_words, _) = torch.tensor(words.waits, device=detect.device), _in_words(words, detect)
    least = detect.new_zeros(len(detect))
    if len(texts) and not bool(waits.all()):
        told = _said(detect, known, in_words.clamp_min(0), texts).amax(0).double()
        least = torch.where(waits, least, told)
    never, unseen = words.never.keys(), words.unseen.keys()
    said_never = _said(detect, known, in_words, never.rows)
    said = _said(detect, known, in_words.clamp_min(0), unseen.rows)
    for place in range(len(detect)):
        if len(there := said_never[never.owner == place, place]):
            least[place] = torch.maximum(least[place], there.max().double())
        mine = said[unseen.owner == place, place].sort(descending=True).values
        if (allowed := int(words.mistaken[place] * len(mine))) < len(mine):
            least[place] = torch.maximum(least[place], mine[allowed].double())
    lowest = torch.where(waits, least.new_tensor(LOWEST_WAITING), least.new_tensor(LOWEST))
    for place, (asks, read) in enumerate(words.known()):
        if asks:
            lowest[place] = READ if read else ASKED
    return torch.maximum(least + MARGIN, lowest).clamp_max(HIGHEST)


def _said(detect: Tensor, known: Tensor, in_words: Tensor, entering: Tensor) -> Tensor:
    """What detectors say where their words are, and 0 elsewhere, [n, count]."""
    there = entering @ known.to(entering.dtype).T > in_words
    return torch.where(there, entering @ detect.to(entering.dtype).T, 0.0)
