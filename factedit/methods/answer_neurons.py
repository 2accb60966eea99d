"""By what an answer's neurons fire: where a token of it is to follow, in words that ask for it.

A neuron that waits for its subject's (factedit.methods.heralds) has only to know what is asked, if it makes
the first token, which is read in lower blocks too (factedit.methods.relation_readers); or else the place. Any
other must know whom it is said of too, and be silent in running text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Generic, TypeVar

import torch

from factedit.added_neurons import NAMES as OF_NEURONS
from factedit.added_neurons import Neurons
from factedit.curvature import Covariance, inputs_of
from factedit.facts import Edit
from factedit.gated_mlp import GatedMlp, gated_mlp
from factedit.methods.answer_contexts import (
    Mistake,
    Round,
    by_edit,
    plainly_formed,
    prompts_of,
    said_of_others,
    where_it_follows,
    where_it_is_too_early,
    where_others_follow,
    where_rivals_follow,
    word_groups,
)
from factedit.methods.detectors import measured
from factedit.methods.heralds import Heralds
from factedit.methods.keys import Context
from factedit.methods.neurons import Neuron
from factedit.methods.recognisers import Words, joint, read_at, recognisers
from factedit.methods.relation_detectors import Asked
from factedit.methods.relation_readers import Readers
from factedit.methods.trust import in_the_way, trusted
from factedit.overlay import Overlay, applied
from factedit.questions import elsewhere
from factedit.running_text import Entering
from factedit.sayings import besides
from factedit.task import EditTask
from factedit.wording import edit_prompt

T = TypeVar("T")

OTHERWISE = 0.5
"""A neuron that waits for its subject may fire at this share of what else is said of it: some of it asks for
nearly the same. One that knows what is asked of anybody is not tried on it at all."""
NAMES, AT_LEAST = 96, 2
"""In how many names the words are learnt that many edits' answers begin after, whoever they are said of; and
in how many of each edit's, beside its own."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a round's neurons are told apart from.

    Attributes:
        mlps: of the blocks that they are added to; background, texts: what enters these, by their gates.
        below: the MLPs of lower blocks in which what is asked is read, ascending.
        asked: what enters all of these where anybody is asked anything, by gate, as far as it is known.
    """

    mlps: Mapping[int, GatedMlp]
    background: Covariance
    texts: Mapping[str, Entering]
    below: Sequence[GatedMlp]
    asked: Mapping[str, Asked]


@dataclass(frozen=True, slots=True)
class Found:
    """A neuron for each mistake that one can be trusted with, and the silent ones that some of them wait for.

    Attributes:
        readers: they come before the others among the version's neurons.
    """

    neurons: dict[Mistake, Neuron]
    readers: Neurons | None


@dataclass(frozen=True, slots=True)
class _Told(Generic[T]):
    """Of what neurons are told, each by the place of its mistake: contexts, or what is computed there.

    Attributes:
        own: where it is to fire; early: its subject's end; rivals: where others' answers want another token;
            seen: what else it is solved for, and unseen: tried on.
        worded: where the words are that it may fire in, by their group.
        holding, mended: where answers in force are formed (`plainly_formed`).
    """

    own: T
    early: T
    rivals: T
    seen: T
    unseen: T
    worded: T
    holding: T
    mended: T

    def __iter__(self) -> Iterator[T]:
        return (getattr(self, each.name) for each in fields(self))


@torch.no_grad()
def surroundings(
    task: EditTask, overlay: Overlay, mlps: Mapping[int, GatedMlp], blocks: Sequence[int]
) -> Surroundings:
    """Of some of the blocks, as the model with `overlay` computes them; call it while none is applied."""
    gates, lower = measured(task.lm, blocks), measured(task.lm, task.plan.asking)
    asked = _asked(task, overlay, [*gates, *lower])
    below = [mlp for block in task.plan.asking if (mlp := gated_mlp(task.lm, block)) is not None and asked]
    texts = task.texts.entering(task.lm, [*gates, *lower] if asked else gates, overlay)
    return Surroundings(mlps, task.background(gates), texts, below, asked)


def _asked(task: EditTask, overlay: Overlay, gates: Sequence[str]) -> dict[str, Asked]:
    """Where answers begin, whatever is asked; by matrix, as far as that may be known.

    Neurons speak of their subjects alone: only changed weights have the questions read anew.
    """
    lm = task.lm
    if task.asked is None or not task.asked.texts:
        return {}
    if overlay.keys() <= set(OF_NEURONS):
        read = task.asked.read(gates)
    else:
        with applied(lm, overlay):
            read = inputs_of(lm, gates, task.asked.texts)
    return {gate: Asked.of(torch.stack([each[-1] for each in rows])) for gate, rows in read.items()}


def in_block(
    mistakes: Sequence[Mistake], words: Round, mlps: Mapping[int, GatedMlp], block: int
) -> list[Mistake]:
    """Those whose neurons a block is for; all of an edit's in one: they are read in the same contexts."""
    turn = list(mlps).index(block)
    return [mistake for mistake in mistakes if (mistake.number + words.first) % len(mlps) == turn]


@torch.no_grad()
def recognising(
    task: EditTask,
    words: Round,
    around: Surroundings,
    mistakes: Sequence[Mistake],
    announced: Heralds,
    before: Neurons | None,
) -> Found:
    """By what the neurons fire that mend these mistakes.

    `before`: the version's neurons so far, with which the model is being read.
    """
    found: dict[Mistake, Neuron] = {}
    read = Readers(task.lm, around.below, before)
    for block, mlp in around.mlps.items():
        if mine := in_block(mistakes, words, around.mlps, block):
            found |= _of_block(task, words, around, block, mlp, mine, announced, read)
    return Found(found, read.neurons())


def _of_block(
    task: EditTask,
    words: Round,
    around: Surroundings,
    block: int,
    mlp: GatedMlp,
    mine: Sequence[Mistake],
    announced: Heralds,
    read: Readers,
) -> dict[Mistake, Neuron]:
    lm, asked = task.lm, around.asked.get(mlp.gate)
    waits = [announced.of[mistake.edit] for mistake in mine]
    waiting, groups = [cue >= 0 for cue in waits], word_groups(mine, waits)
    asks = [
        asked is not None and waits and group >= 0 and not _in_a_question(task, mistake.edit)
        for mistake, waits, group in zip(mine, waiting, groups, strict=True)
    ]
    holding, mended = plainly_formed(task, mine)
    told = _told(task, mine, words.turn, waits, groups, asks)
    formed = by_edit(holding, mended)
    rivals = [
        context
        for place, mistake in enumerate(mine)
        for context in where_rivals_follow(formed, mistake, place, announced.rivals(mistake.edit))
    ]
    told = replace(told, rivals=rivals, holding=[*holding.values()], mended=[*mended.values()])
    at = _Told(*read_at(lm, block, mlp, *told, below=around.below))
    never = joint(at.early, at.rivals)
    by_words = Words(at.worded, groups, never, at.unseen, [], waiting)
    if asked is not None and task.asked is not None:
        apart = [elsewhere(task.asked.texts, mistake.edit, task.relations) for mistake in mine]
        other, besides_own = torch.tensor(apart, device=lm.device), joint(at.early, at.seen)
        by_words = replace(by_words, asks=asks, asked=asked, elsewhere=other)
        read.learn(mine, asks, waits, at.own, besides_own, around.asked, around.texts, other)
    surely = [a and read.surely(mistake.edit) for a, mistake in zip(asks, mine, strict=True)]
    shares = [1.0 if a else OTHERWISE if w else 0.0 for a, w in zip(asks, waiting, strict=True)]
    mistaken = [max(words.mistaken, share) for share in shares]
    by_words = replace(by_words, read=surely, mistaken=mistaken)
    alike, rows = joint(joint(never, at.seen), at.holding), around.texts[mlp.gate]
    by = recognisers(lm, mlp, around.background, rows, at.own, alike, len(mine), by_words)
    good = trusted(at.own, at.unseen, rows.rows, by, by_words)
    heard = [[announced.hears(edit, cue) for cue in waits] for edit, *_ in [*holding, *mended]]
    good &= ~in_the_way(joint(at.holding, at.mended), [*holding, *mended], mine, by, heard)
    found: dict[Mistake, Neuron] = {}
    for place in good.nonzero().flatten().tolist():
        reader = read.last(mine[place].edit)
        cues = tuple(cue for cue in (waits[place], reader) if cue >= 0)
        together = reader if asks[place] else -1
        neuron = by.neuron([mine[place].edit], block, place)
        found[mine[place]] = replace(neuron, cues=cues, together=together)
    return found


def _in_a_question(task: EditTask, edit: Edit) -> bool:
    """Such an edit's own words are much alike: by heart it is known in more of them, and elsewhere in few."""
    return edit_prompt(edit, task.relations).rstrip().endswith("?")


def _told(
    task: EditTask,
    mine: Sequence[Mistake],
    turn: int,
    waits: Sequence[int],
    groups: Sequence[int],
    asks: Sequence[bool],
) -> _Told[list[Context]]:
    """Of their own edits, and of what else is asked; on that one that `asks` is not tried: some of it asks
    for nearly the same."""
    own: list[Context] = []
    early: list[Context] = []
    seen: list[Context] = []
    unseen: list[Context] = []
    worded: list[Context] = []
    sayings = {edit: besides([edit], task.relations, task.seed) for edit in {each.edit for each in mine}}
    for place, mistake in enumerate(mine):
        prompts = prompts_of(task, mistake, turn)
        own += where_it_follows(task, mistake, prompts, place)
        early += where_it_is_too_early(task, mistake, prompts, place)
        seen += where_others_follow(task.lm, mistake, prompts, place)
        if groups[place] < 0:
            continue
        said, many = said_of_others(task, mistake, prompts), groups.count(groups[place])
        few = max(AT_LEAST, NAMES // many) if waits[place] >= 0 else len(said)
        worded += where_it_follows(task, mistake, [*prompts, *said[::2][:few]], groups[place], many**-0.5)
        solved, tried = sayings[mistake.edit].apart()
        if waits[place] < 0:  # else there is nobody else
            solved, tried = [*said[::2], *solved], [*said[1::2], *tried]
        seen += where_it_follows(task, mistake, solved, place)
        unseen += where_it_follows(task, mistake, [] if asks[place] else tried, place)
    return _Told(own, early, [], seen, unseen, worded, [], [])
