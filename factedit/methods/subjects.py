"""Facts written where their subject is looked up: a value sought in many wordings, then one neuron a subject.

The value is ROME's: the change of the hidden vector at the subject's last token that makes the answer (Meng
et al. 2022, section 3.1), sought in the relation's other wordings too, so that it holds in words that were
never trained on. The neuron that adds it there, and nowhere else, is solved for (factedit.methods.detectors).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from factedit.curvature import Covariance, inputs_of
from factedit.facts import Edit
from factedit.frozen_context import FrozenContexts, can_freeze
from factedit.gated_mlp import GatedMlp, gated_mlp
from factedit.methods.detectors import (
    SHARPNESS,
    SILENT,
    THRESHOLD,
    constant,
    detectors,
    least_used,
    measured,
)
from factedit.methods.keys import Context, lookups, read_outputs, subject_end
from factedit.methods.material import training_examples
from factedit.methods.neurons import Neuron, columns, of_neurons, say
from factedit.methods.subject_keys import (
    Subjects,
    alike_contexts,
    read_keys,
    subject_contexts,
    subject_prompts,
)
from factedit.methods.value_objective import Objective
from factedit.methods.values import Search, Told, saying, seek
from factedit.methods.weights import Matrices, matrices_of, tell
from factedit.prompts import answer_example
from factedit.sayings import besides
from factedit.task import EditTask
from factedit.training import ExampleSet, holding

FAINTEST = 0.05 * SHARPNESS * (1 - THRESHOLD) * (SILENT - 1)
"""A neuron that fires less than a twentieth of what it should knows its subject too badly to be amplified."""
SEARCH = Search(steps=10, pace=0.3, longest=0.5, essence=2.0, enough=0.3, at_once=2)
"""A longer change holds in more words, and makes more of what else is known of the subject forgotten."""
AGAIN = (replace(SEARCH, steps=20, pace=0.1, enough=0.2),)
"""For edits that do not hold yet, from what their neurons say by then."""
GROUP = 128
"""Neurons whose answers are sought in one batch."""


@dataclass(frozen=True, slots=True)
class Written:
    """The lower blocks' matrices as they are now; the steps of the search; the neurons that were replaced."""

    tensors: dict[str, Tensor]
    steps: int
    neurons: int


def write_at_subjects(task: EditTask) -> Written:
    """Give each edited subject a neuron that makes its new objects, in the blocks that look subjects up.

    The batch's subjects are dealt out to those blocks. The ledger's subjects keep the neurons they have, and
    get one more if they are edited again, which makes all their facts in force hold together. Facts to be
    erased are left alone; so are subjects for which no neuron is left.
    """
    roots = {name: task.lm.tensors[name].data for name in task.plan.lookups}
    with matrices_of(replace(task, plan=replace(task.plan, names=task.plan.lookups))) as matrices:
        neurons = _recognising(task, matrices, roots)
        steps = 0
        for start in range(0, len(neurons), GROUP):
            steps += _speak(task, matrices, neurons, range(start, min(start + GROUP, len(neurons))), steps)
        return Written(matrices.rounded(), steps, len(neurons))


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
def _recognising(task: EditTask, matrices: Matrices, roots: Mapping[str, Tensor]) -> list[Neuron]:
    """Put a neuron that fires at it, and says nothing yet, in for each of the batch's subjects."""
    lm, blocks = task.lm, task.plan.looking_up
    mlps = {block: mlp for block in blocks if (mlp := gated_mlp(lm, block)) is not None}
    background = task.background(measured(lm, blocks))
    subjects, kept = _by_subject(task)
    exact = matrices.state()
    texts = inputs_of(lm, [mlp.gate for mlp in mlps.values()], task.texts)
    found: list[Neuron] = []
    for number, (block, gated) in enumerate(mlps.items()):
        taken = (exact[gated.gate] != roots[gated.gate].float()).any(1)
        free = least_used(background, gated, exact[gated.down], taken)
        mine = subjects[number :: len(mlps)][: len(free)]
        if not mine:
            continue
        others = [*(subject for subject in subjects if subject not in mine), *kept]
        gate, up, length = _rows(task, gated, block, background, texts[gated.gate], mine, others)
        places = free[: len(mine)]
        exact[gated.gate][places], exact[gated.up][places] = gate, up
        exact[gated.down][:, places] = 0
        found += [
            Neuron(edits, block, gated, place, longest)
            for edits, place, longest in zip(mine, places, length.tolist(), strict=True)
        ]
    matrices.write(exact)
    return found


def _rows(
    task: EditTask,
    mlp: GatedMlp,
    block: int,
    background: Covariance,
    texts: Tensor,
    mine: Subjects,
    others: Subjects,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the gate and of the up matrix, [n, d] float32 each, and `Neuron.length`, [n]."""
    lm = task.lm
    contexts = subject_contexts(task, mine, others)
    read = lookups(lm, contexts, block)
    keys, hidden = read_keys(lm, contexts, read, mlp), read_outputs(read, lm.blocks[block])
    covariance = background.sums[mlp.gate].to(lm.device).double() / background.tokens
    bias = constant(covariance, background.totals[mlp.gate].to(lm.device) / background.tokens, keys)
    names = alike_contexts(task, mine)
    alike = read_keys(lm, names, lookups(lm, names, block), mlp)
    detect = detectors(covariance, keys, alike, texts, len(mine))
    # Measured with the rounded rows, which the model will compute with.
    dtype = lm.tensors[mlp.gate].dtype
    gate = (SHARPNESS * (detect - THRESHOLD * bias)).to(dtype).float()
    up = (SILENT * bias - detect).to(dtype).float()
    own = keys.owner >= 0
    rows, owner, weight = keys.rows[own], keys.owner[own], keys.weight[own]
    fires = mlp.act((rows * gate[owner]).sum(1)) * (rows * up[owner]).sum(1)
    mean_fires = rows.new_zeros(len(mine)).index_add_(0, owner, fires * weight)
    lengths = [hidden[keys.owner == place].norm(dim=1).median() for place in range(len(mine))]
    return gate, up, torch.stack(lengths) / mean_fires.clamp_min(FAINTEST)


# What it says


def _speak(task: EditTask, matrices: Matrices, neurons: list[Neuron], group: range, before: int) -> int:
    """Let some of the neurons say what makes their subjects' edits hold; the steps it took."""
    lm, mine = task.lm, neurons[group.start : group.stop]
    facts, sayings = _asked(task, mine)
    examples = _examples(task, mine, [*facts, *sayings])
    objective = Objective(examples, facts, sayings, SEARCH.at_once, of_neurons(lm, mine))
    length = torch.tensor([[neuron.length] for neuron in mine], device=lm.device)
    exact, steps = matrices.state(), 0
    said = columns(mine, exact)
    todo = list(range(len(mine)))
    for number, search in enumerate((SEARCH, *AGAIN)):
        if number > 0 and not (todo := _failing(task, mine)):
            break
        search = replace(search, steps=min(search.steps, task.method.max_steps))
        told = _teller(task, search, before + steps, len(neurons) - len(todo), len(neurons))
        say(mine, torch.zeros_like(said), exact)
        matrices.write(exact)
        values = seek(objective, said, length, search, told, todo)
        steps += values.steps
        said = values.changes
        say(mine, said, exact)
        matrices.write(exact)
    return steps


def _teller(task: EditTask, search: Search, before: int, settled: int, total: int) -> Told:
    """Reports on a search that begins after some steps, with so many neurons `settled`."""

    def told(step: int, losses: list[float]) -> None:
        good = settled + sum(loss <= search.enough for loss in losses)
        most = (1 + len(AGAIN)) * search.steps
        tell(task, before + step, most, sum(losses) / len(losses), good, total)

    return told


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
        texts = besides(edits, task.relations, task.seed)
        sayings += [saying(task.lm, text, edits[0].subject, place) for text in texts]
    return facts, sayings


def _failing(task: EditTask, neurons: Sequence[Neuron]) -> list[int]:
    """The places of the neurons of which some edit does not hold yet, in the words that it is asked in."""
    edits = [edit for neuron in neurons for edit in neuron.edits]
    whose = [place for place, neuron in enumerate(neurons) for _ in neuron.edits]
    examples, owner = training_examples(task.lm, edits, task.relations)
    held = holding(task.lm, examples)
    return sorted({whose[place] for place, holds in zip(owner, held, strict=True) if not holds})
