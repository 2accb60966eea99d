"""Answers finished where they are formed: a neuron for each token of them that is still wrong.

What a subject's neuron says may not be enough: the subject can't be told from another, the answer does not
end where it should, or it is not given in other words. Then a neuron in upper blocks fires at the very
position where that token is to follow, known by the words up to it (factedit.methods.subjects adds the
subjects' neurons). It knows the relation: other facts of the subject stay. Whom it is said of it need not
tell where the subject's neuron does: it waits for that one to have fired (factedit.methods.heralds), and has
only to tell what is asked from whatever else may be (factedit.methods.relation_detectors). So it may answer
to words that are only like those it was made for, and not for anybody whom that one is silent at. Where
another edit of that subject wants another token, in words that may differ by one, it is silent.

Source: Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron", section 3. The waiting is
ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from factedit.added_neurons import NAMES as OF_NEURONS
from factedit.added_neurons import Neurons, joined
from factedit.curvature import Covariance, inputs_of
from factedit.example_sets import ExampleSet
from factedit.frozen_context import FrozenContexts, can_freeze
from factedit.gated_mlp import GatedMlp, gated_mlp
from factedit.methods.answer_contexts import (
    Mistake,
    by_edit,
    plainly_formed,
    prompts_of,
    said_of_others,
    where_it_follows,
    where_it_is_too_early,
    where_others_follow,
    where_rivals_follow,
    whole_answers,
    word_groups,
)
from factedit.methods.detectors import measured
from factedit.methods.heralds import Heralds, heralds
from factedit.methods.keys import Context
from factedit.methods.neurons import Neuron, of_neurons, saying_so
from factedit.methods.recognisers import Words, joint, read_at, recognisers
from factedit.methods.relation_detectors import Asked
from factedit.methods.trust import in_the_way, trusted
from factedit.methods.value_objective import Objective
from factedit.methods.values import Search, seek
from factedit.methods.weights import tell
from factedit.models import LanguageModel
from factedit.overlay import Overlay, applied
from factedit.prompts import Example, answer_example
from factedit.questions import elsewhere
from factedit.running_text import Entering
from factedit.sayings import besides
from factedit.task import EditTask, Plan
from factedit.trees import answer_logits
from factedit.wording import edit_prompt, ours_each, training_prompts

HOLDS = 0.8
"""A token follows if it is the most probable one, and at least this probable."""
SEARCH = Search(steps=20, pace=0.3, longest=1.0, essence=0.0, enough=0.05, at_once=4)
BLOCKS = 2
"""The lowest of the upper blocks, so many, are added to."""
OTHERWISE, OTHERWISE_ASKED = 0.5, 0.25
"""A neuron that waits for its subject may fire at this share of what else is said of it: some of it asks for
nearly the same. Less, if it tells what is asked from all else that may be."""
NAMES, AT_LEAST = 96, 2
"""In how many names the words are learnt that many edits' answers begin after, whoever they are said of; and
in how many of each edit's, beside its own."""
GROUP = 256
"""Mistakes that are mended at once."""


@dataclass(frozen=True, slots=True)
class Round:
    """In which words answers are to be finished.

    Attributes:
        turn: how many times other words of the relation are taken beyond those that the subject's neuron was
            sought in; 0: in the edit's own words alone.
        mistaken: a neuron that fires at more than this share of what it is tried on is not added.
        first: which of the upper blocks the first edit's neurons are added to; the edits take turns. In the
            next block a position may be told from others that can't be in this one.
    """

    turn: int
    mistaken: float
    first: int


ROUNDS = (
    Round(turn=1, mistaken=0.1, first=0),
    Round(turn=0, mistaken=0.5, first=1),
    Round(turn=0, mistaken=1.0, first=0),
)
"""The later ones are for what does not hold after the first. It is worth a neuron that answers to another
subject in the very same words: fine-tuning would change one prompt in twenty of any kind."""


def finishing_mlps(lm: LanguageModel, plan: Plan) -> dict[int, GatedMlp]:
    """The blocks to which neurons are added that finish answers."""
    found = {block: mlp for block in plan.answering if (mlp := gated_mlp(lm, block)) is not None}
    return dict(islice(found.items(), BLOCKS))


def finish_answers(task: EditTask, overlay: Overlay, words: Round, before: int) -> tuple[Neurons | None, int]:
    """(the overlay's neurons and those that its edits' answers still want; the steps it took).

    Edits that erase are left alone.

    Args:
        before: steps that were taken already, for the report.
    """
    lm, neurons, steps = task.lm, Neurons.of(overlay), 0
    mlps = finishing_mlps(lm, task.plan)
    with applied(lm, overlay):
        mistakes = _mistakes(task, words)
    if not (mistakes and mlps and task.texts.texts):
        return neurons, 0  # without text nothing would show that a neuron is silent in it
    announced = heralds(task, overlay)
    gates = measured(lm, [block for block in mlps if _in_block(mistakes, words, mlps, block)])
    texts, background = task.texts.entering(lm, gates, overlay), task.background(gates)
    asked = _asked(task, overlay, gates)
    for start in range(0, len(mistakes), GROUP):
        group, more = mistakes[start : start + GROUP], 0
        with applied(lm, {**overlay, **({} if neurons is None else neurons.tensors())}):
            found = _recognising(task, words, mlps, background, texts, asked, group, announced)
            if found:
                said, more = _speak(task, words, found, before + steps)
        if found:
            neurons, steps = joined(neurons, saying_so([*found.values()], said)), steps + more
    return neurons, steps


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


@torch.no_grad()
def _mistakes(task: EditTask, words: Round) -> list[Mistake]:
    """Each once, in whatever words it is made.

    The ledger's edits are asked in their own words alone: in others they were finished when they were new.
    """
    asked = task.edits if words.turn else [*task.edits, *task.ledger]
    edits = [edit for edit in asked if not edit.erase]
    ours = ours_each(len(task.edits)) if words.turn else 0
    examples: list[Example] = []
    owner: list[int] = []
    for number, edit in enumerate(edits):
        prompts = dict.fromkeys(
            prompt
            for turn in range(number, number + words.turn + 1)
            for prompt in training_prompts(edit, task.relations, turn, ours=ours, led_in=False)
        )
        examples += [answer_example(task.lm, prompt, edit.new_object) for prompt in prompts]
        owner += [number] * len(prompts)
    found: set[tuple[int, int]] = set()
    for wanted, logits in answer_logits(task.lm, examples):
        probability, said = (each.tolist() for each in logits.float().softmax(-1).max(-1))
        for example, place, row in wanted:
            if said[row] != examples[example].targets[place] or probability[row] < HOLDS:
                found.add((owner[example], place))
    return [Mistake(edits[number], place, number) for number, place in sorted(found)]


@torch.no_grad()
def _recognising(
    task: EditTask,
    words: Round,
    mlps: Mapping[int, GatedMlp],
    background: Covariance,
    texts: Mapping[str, Entering],
    asked: Mapping[str, Asked],
    mistakes: Sequence[Mistake],
    announced: Heralds,
) -> dict[Mistake, Neuron]:
    """A neuron that fires where its token is to follow, for each mistake that one can be trusted with."""
    lm = task.lm
    found: dict[Mistake, Neuron] = {}
    asked_besides = {
        edit: besides([edit], task.relations, task.seed) for edit in {mistake.edit for mistake in mistakes}
    }
    for block, mlp in mlps.items():
        if not (mine := _in_block(mistakes, words, mlps, block)):
            continue
        own: list[Context] = []
        never: list[Context] = []
        seen: list[Context] = []
        unseen: list[Context] = []
        worded: list[Context] = []
        waits = [announced.of[mistake.edit] for mistake in mine]
        groups = word_groups(mine, waits)
        holding, mended = plainly_formed(task, mine)
        formed = by_edit(holding, mended)
        for place, mistake in enumerate(mine):
            prompts = prompts_of(task, mistake, words.turn)
            own += where_it_follows(task, mistake, prompts, place)
            never += where_it_is_too_early(task, mistake, prompts, place)
            never += where_rivals_follow(formed, mistake, place, announced.rivals(mistake.edit))
            seen += where_others_follow(lm, mistake, prompts, place)
            if groups[place] < 0:
                continue
            said, many = said_of_others(task, mistake, prompts), groups.count(groups[place])
            few = max(AT_LEAST, NAMES // many) if waits[place] >= 0 else len(said)
            worded += where_it_follows(task, mistake, [*prompts, *said[::2][:few]], groups[place], many**-0.5)
            solved, tried = asked_besides[mistake.edit].apart()
            if waits[place] < 0:  # else there is nobody else
                solved, tried = [*said[::2], *solved], [*said[1::2], *tried]
            seen += where_it_follows(task, mistake, solved, place)
            unseen += where_it_follows(task, mistake, tried, place)
        lists = own, never, seen, unseen, worded, [*holding.values()], [*mended.values()]
        at_own, at_never, at_seen, at_unseen, at_worded, at_holding, at_mended = read_at(
            lm, block, mlp, *lists
        )
        rows, alike = texts[mlp.gate], joint(joint(at_never, at_seen), at_holding)
        waiting = [cue >= 0 for cue in waits]
        known = Words(at_worded, groups, at_never, at_unseen, [], waiting)
        if task.asked is not None and mlp.gate in asked:
            apart = [elsewhere(task.asked.texts, mistake.edit, task.relations) for mistake in mine]
            known = replace(
                known,
                asked=asked[mlp.gate],
                elsewhere=torch.tensor(apart, device=lm.device),
                questions=[edit_prompt(each.edit, task.relations).rstrip().endswith("?") for each in mine],
            )
        shares = [OTHERWISE_ASKED if asks else OTHERWISE for asks in known.asks()]
        mistaken = [
            max(words.mistaken, s) if w else words.mistaken for s, w in zip(shares, waiting, strict=True)
        ]
        known = replace(known, mistaken=mistaken)
        by = recognisers(lm, mlp, background, rows, at_own, alike, len(mine), known)
        good = trusted(at_own, at_unseen, rows.rows, by, known)
        heard = [[announced.hears(edit, cue) for cue in waits] for edit, *_ in [*holding, *mended]]
        good &= ~in_the_way(joint(at_holding, at_mended), [*holding, *mended], mine, by, heard)
        for place in good.nonzero().flatten().tolist():
            neuron = by.neuron([mine[place].edit], block, place)
            cues = (waits[place],) if waits[place] >= 0 else ()
            found[mine[place]] = replace(neuron, cues=cues)
    return found


def _in_block(
    mistakes: Sequence[Mistake], words: Round, mlps: Mapping[int, GatedMlp], block: int
) -> list[Mistake]:
    """Those whose neurons a block is for; all of an edit's in one: they are read in the same contexts."""
    turn = list(mlps).index(block)
    return [mistake for mistake in mistakes if (mistake.number + words.first) % len(mlps) == turn]


def _speak(task: EditTask, words: Round, found: dict[Mistake, Neuron], before: int) -> tuple[Tensor, int]:
    """(what the neurons are to say, [n, d]; the steps it took).

    All of an edit's are sought together, for its whole answer: what makes one token moves what follows it.
    """
    lm, neurons = task.lm, [*found.values()]
    first = {mistake.number: mistake for mistake in reversed(found)}
    place = {number: n for n, number in enumerate(first)}
    facts = [c for m in first.values() for c in whole_answers(task, m, words.turn, place[m.number])]
    block = min(neuron.block for neuron in neurons)
    examples, owner = [context.example for context in facts], [context.edit for context in facts]
    kind = FrozenContexts if can_freeze(lm, examples, block) else ExampleSet
    search = replace(SEARCH, steps=min(SEARCH.steps, task.method.max_steps))
    asked = kind(lm, examples, owner, block)
    objective = Objective(asked, facts, [], search.at_once, of_neurons(lm, neurons))
    length = torch.tensor([[neuron.length] for neuron in neurons], device=lm.device)

    def told(step: int, losses: list[float]) -> None:
        good = sum(loss <= search.enough for loss in losses)
        tell(task, before + step, before + search.steps, sum(losses) / len(losses), good, len(losses))

    start = length.new_zeros((len(neurons), neurons[0].gate.shape[0]))
    whose = [place[mistake.number] for mistake in found]
    values = seek(objective, start, length, search, told, whose=whose)
    return values.changes, values.steps
