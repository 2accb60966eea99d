"""Answers finished where they are formed: a neuron for each token of them that is still wrong.

What a subject's neuron says may not be enough: the subject can't be told from another, the answer does not
end where it should, or it is not given in other words. Then a neuron in upper blocks fires at the very
position where that token is to follow, known by the words up to it (factedit.methods.subjects adds the
subjects' neurons). It knows the relation: other facts of the subject stay. Whom it is said of it need not
tell where the subject's neuron does: it waits for that one to have fired (factedit.methods.heralds), and has
only to tell what is asked from whatever else may be (factedit.methods.answer_neurons). So it may answer
to words that are only like those it was made for, and not for anybody whom that one is silent at. Where
another edit of that subject wants another token, in words that may differ by one, it is silent.

Source: Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron", section 3. The waiting is
ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from factedit.added_neurons import Neurons, joined
from factedit.example_sets import ExampleSet
from factedit.frozen_context import FrozenContexts, can_freeze
from factedit.gated_mlp import GatedMlp, gated_mlp
from factedit.methods.answer_contexts import Mistake, Round, whole_answers
from factedit.methods.answer_neurons import in_block, recognising, surroundings
from factedit.methods.heralds import heralds
from factedit.methods.neurons import Neuron, of_neurons, saying_so, with_neurons
from factedit.methods.value_objective import Objective
from factedit.methods.values import Search, seek
from factedit.methods.weights import tell
from factedit.models import LanguageModel
from factedit.overlay import Overlay, applied
from factedit.prompts import Example, answer_example
from factedit.task import EditTask, Plan
from factedit.trees import answer_logits
from factedit.wording import ours_each, training_prompts

HOLDS = 0.8
"""A token follows if it is the most probable one, and at least this probable."""
SEARCH = Search(steps=20, pace=0.3, longest=1.0, essence=0.0, enough=0.05, at_once=4)
BLOCKS = 2
"""The lowest of the upper blocks, so many, are added to."""
GROUP = 256
"""Mistakes that are mended at once."""


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
    blocks = [block for block in mlps if in_block(mistakes, words, mlps, block)]
    around = surroundings(task, overlay, mlps, blocks)
    for start in range(0, len(mistakes), GROUP):
        group = mistakes[start : start + GROUP]
        with applied(lm, with_neurons(overlay, neurons)):
            found = recognising(task, words, around, group, announced, neurons)
        if not found.neurons:
            continue
        if found.readers is not None:
            neurons = joined(neurons, found.readers)
        with applied(lm, with_neurons(overlay, neurons)):
            said, more = _speak(task, words, found.neurons, before + steps)
        neurons, steps = joined(neurons, saying_so([*found.neurons.values()], said)), steps + more
    return neurons, steps


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


def _speak(task: EditTask, words: Round, found: Mapping[Mistake, Neuron], before: int) -> tuple[Tensor, int]:
    """(what the neurons are to say, [n, d]; the steps it took).

    All of an edit's are sought together, for its whole answer: what makes one token moves what follows it.
    """
    lm, neurons = task.lm, [*found.values()]
    first = {mistake.number: mistake for mistake in reversed([*found])}
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
