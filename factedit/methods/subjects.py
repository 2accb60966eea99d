"""Facts written where their subject is looked up: a value sought in many wordings, then one neuron a subject.

The value is ROME's: the change of the hidden vector at the subject's last token that makes the answer (Meng
et al. 2022, section 3.1), sought in the relation's other wordings too, so that it holds in words that were
never trained on. The neuron that adds it there, and nowhere else, is solved for (factedit.methods.detectors).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from factedit.added_neurons import Neurons, joined
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.frozen_context import FrozenContexts, can_freeze
from factedit.gated_mlp import gated_mlp
from factedit.methods.detectors import measured
from factedit.methods.keys import Context, subject_end
from factedit.methods.name_words import Readers, readers
from factedit.methods.neurons import Neuron, of_neurons, saying_so, with_neurons
from factedit.methods.recognisers import WIDTH, read_at, recognisers
from factedit.methods.subject_keys import (
    Subjects,
    alike_contexts,
    namesake_contexts,
    subject_contexts,
    subject_prompts,
)
from factedit.methods.value_objective import Objective
from factedit.methods.values import Search, saying, seek
from factedit.methods.weights import tell
from factedit.overlay import applied
from factedit.prompts import answer_example
from factedit.sayings import besides
from factedit.task import EditTask

SEARCH = Search(steps=10, pace=0.3, longest=0.35, essence=4.0, enough=0.3, at_once=2)
"""A longer change holds in more words, and makes more of what else is known of the subject forgotten. What
does not hold with it is left to the answers' neurons."""
BY_RELATION = 0.7
"""All lengths are so much shorter where the relation is known: such edits are finished in all of its
templates (factedit.methods.finishing), which leaves their subjects' other facts alone."""
SOFTLY = 0.35
"""For their sake, too, such a neuron fires the less, the less clearly its subject is recognised."""
GROUP = 128
"""Neurons whose answers are sought in one batch."""


@dataclass(frozen=True, slots=True)
class Written:
    """The version's neurons, the parent's among them; the steps of the search.

    Attributes:
        readers: how many of the neurons are new and read words.
    """

    neurons: Neurons | None
    steps: int
    readers: int = 0


def write_at_subjects(task: EditTask) -> Written:
    """Add a neuron for each edited subject that makes its new objects, in the blocks that look subjects up.

    The batch's subjects are dealt out to those blocks. The ledger's subjects keep the neurons they have, and
    get one more if they are edited again, which makes all their facts in force hold together. Facts to be
    erased are left alone.
    """
    neurons, steps = Neurons.of(task.parent), 0
    read = readers(task, _by_subject(task)[0])
    if read.neurons is not None:
        neurons = joined(neurons, read.neurons)
    found = [_waiting(neuron, read, neurons) for neuron in _recognising(task)]
    for start in range(0, len(found), GROUP):
        group = found[start : start + GROUP]
        with applied(task.lm, with_neurons(task.parent, neurons)):
            said, more = _speak(task, group, steps, start, len(found))
        neurons, steps = joined(neurons, saying_so(group, said)), steps + more
    return Written(neurons, steps, 0 if read.neurons is None else len(read.neurons.blocks))


def _waiting(neuron: Neuron, read: Readers, neurons: Neurons | None) -> Neuron:
    """It waits for the words of its subject's name; those that read them are the last of the neurons."""
    first = 0 if neurons is None or read.neurons is None else len(neurons.blocks) - len(read.neurons.blocks)
    words = read.of.get(neuron.edits[0].subject.casefold(), ())
    return replace(neuron, cues=tuple(first + place for place in words))


def _by_subject(task: EditTask) -> tuple[Subjects, Subjects]:
    """(the batch's subjects, each with all its edits in force; the ledger's other subjects)."""
    found: dict[str, list[Edit]] = {}
    for edit in [*task.edits, *task.ledger]:
        if not edit.erase:
            found.setdefault(edit.subject.casefold(), []).append(edit)
    new = {edit.subject.casefold() for edit in task.edits if not edit.erase}
    return [e for s, e in found.items() if s in new], [e for s, e in found.items() if s not in new]


# What a neuron answers to


@torch.no_grad()
def _recognising(task: EditTask) -> list[Neuron]:
    """A neuron that fires at it for each of the batch's subjects."""
    lm, blocks = task.lm, task.plan.looking_up
    mlps = {block: mlp for block in blocks if (mlp := gated_mlp(lm, block)) is not None}
    subjects, kept = _by_subject(task)
    dealt = dict(islice(mlps.items(), len(subjects)))  # of fewer subjects than blocks each is in another one
    background = task.background(measured(lm, list(dealt)))
    texts = task.texts.entering(lm, [mlp.gate for mlp in dealt.values()], task.parent)
    found: list[Neuron] = []
    for number, (block, gated) in enumerate(dealt.items()):
        mine = subjects[number :: len(mlps)]
        others = [*(subject for subject in subjects if subject not in mine), *kept]
        with applied(lm, task.parent):
            contexts = subject_contexts(task, mine, others), alike_contexts(task, mine)
            own, alike, namesakes = read_at(lm, block, gated, *contexts, namesake_contexts(task, mine))
        rows = texts[gated.gate]
        rises = [SOFTLY if _all_by_relation(task, edits) else WIDTH for edits in mine]
        by = recognisers(lm, gated, background, rows, own, alike, len(mine), namesakes, rises)
        found += [by.neuron(edits, block, place) for place, edits in enumerate(mine)]
    return found


# What it says


def _speak(
    task: EditTask, neurons: list[Neuron], before: int, settled: int, total: int
) -> tuple[Tensor, int]:
    """(what the neurons are to say, so that their subjects' edits hold, [n, d]; the steps it took)."""
    lm = task.lm
    facts, sayings = _asked(task, neurons)
    examples = _examples(task, neurons, [*facts, *sayings])
    objective = Objective(examples, facts, sayings, SEARCH.at_once, of_neurons(lm, neurons))
    length = torch.tensor([[_reach(task, neuron)] for neuron in neurons], device=lm.device)
    start = length.new_zeros((len(neurons), neurons[0].gate.shape[0]))
    search = replace(SEARCH, steps=min(SEARCH.steps, task.method.max_steps))

    def told(step: int, losses: list[float]) -> None:
        good = settled + sum(loss <= search.enough for loss in losses)
        tell(task, before + step, before + search.steps, sum(losses) / len(losses), good, total)

    values = seek(objective, start, length, search, told)
    return values.changes, values.steps


def _by_relation(task: EditTask, edit: Edit) -> bool:
    return edit.relation in task.relations


def _reach(task: EditTask, neuron: Neuron) -> float:
    return neuron.length * (BY_RELATION if _all_by_relation(task, neuron.edits) else 1.0)


def _all_by_relation(task: EditTask, edits: Sequence[Edit]) -> bool:
    return all(_by_relation(task, edit) for edit in edits)


def _examples(task: EditTask, neurons: Sequence[Neuron], contexts: Sequence[Context]) -> ExampleSet:
    """Computed from the subjects' ends on, where the model allows: nothing before them is changed."""
    examples, owner = [c.example for c in contexts], [c.edit for c in contexts]
    first = min(neuron.block for neuron in neurons)
    if can_freeze(task.lm, examples, first):
        return FrozenContexts(task.lm, examples, owner, first, starts=[c.lookup for c in contexts])
    return ExampleSet(task.lm, examples, owner, first)


def _asked(task: EditTask, neurons: Sequence[Neuron]) -> tuple[list[Context], list[Context]]:
    """(the edits' prompts with their answers; what else is said of their subjects)."""
    facts: list[Context] = []
    sayings: list[Context] = []
    for place, neuron in enumerate(neurons):
        edits = neuron.edits
        asked = [(prompt, edit) for edit in edits for prompt in subject_prompts(task, edit, place)]
        for number, (prompt, edit) in enumerate(asked):
            example = answer_example(task.lm, prompt, edit.new_object)
            end = subject_end(task.lm, prompt, edit.subject)
            facts.append(Context(place, example, end, 1 / len(asked), bare=number == 0))
        texts = besides(edits, task.relations, task.seed).every()
        sayings += [saying(task.lm, text, edits[0].subject, place) for text in texts]
    return facts, sayings
