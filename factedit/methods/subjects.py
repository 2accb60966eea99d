"""Facts written where their subject is looked up: a value sought in many wordings, then one neuron a subject.

The value is ROME's: the change of the hidden vector at the subject's last token that makes the answer (Meng
et al. 2022, section 3.1), sought in the relation's other wordings too, so that it holds in words that were
never trained on. The neuron that adds it there, and nowhere else, is solved for (factedit.methods.detectors).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from factedit.curvature import Covariance
from factedit.facts import Edit
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
from factedit.methods.keys import Context, subject_end
from factedit.methods.memit import all_values
from factedit.methods.subject_keys import (
    Subjects,
    alike_contexts,
    read_keys,
    subject_contexts,
    subject_prompts,
)
from factedit.methods.values import Search
from factedit.methods.weights import matrices_of
from factedit.prompts import answer_example
from factedit.sayings import besides
from factedit.task import EditTask

SEARCH = Search(steps=20, pace=0.3, longest=0.5, essence=2.0, enough=0.3, at_once=2)
"""A longer change holds in more words, and makes more of what else is known of the subject forgotten."""
FAINTEST = 0.05 * SHARPNESS * (1 - THRESHOLD) * (SILENT - 1)
"""A neuron that fires less than a twentieth of what it should knows its subject too badly to be amplified."""


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
    lm, blocks = task.lm, task.plan.looking_up
    mlps = {block: found for block in blocks if (found := gated_mlp(lm, block)) is not None}
    background = task.background(measured(lm, blocks))
    subjects, kept = _by_subject(task)
    roots = {mlp.gate: lm.tensors[mlp.gate].data for mlp in mlps.values()}
    steps, neurons = 0, 0
    with matrices_of(replace(task, plan=replace(task.plan, names=task.plan.lookups))) as matrices:
        for place, (block, mlp) in enumerate(mlps.items()):
            exact = matrices.state()
            taken = (exact[mlp.gate] != roots[mlp.gate].float()).any(1)
            free = least_used(background, mlp, exact[mlp.down], taken)
            mine = subjects[place :: len(mlps)][: len(free)]
            if not mine:
                continue
            others = [*(subject for subject in subjects if subject not in mine), *kept]
            changes, more = _values(task, mine, block)
            rows = _neurons(task, mlp, block, background, mine, others, changes)
            for name, part in zip(mlp.names, rows, strict=True):
                target = exact[name] if name != mlp.down else exact[name].T
                target[free[: len(mine)]] = part
            matrices.write(exact)
            steps, neurons = steps + more, neurons + len(mine)
        tensors = matrices.rounded()
    return Written(tensors, steps, neurons)


def _by_subject(task: EditTask) -> tuple[Subjects, Subjects]:
    """(the batch's subjects, each with all its edits in force; the ledger's other subjects)."""
    found: dict[str, list[Edit]] = {}
    for edit in [*task.edits, *task.ledger]:
        if not edit.erase:
            found.setdefault(edit.subject.casefold(), []).append(edit)
    new = {edit.subject.casefold() for edit in task.edits if not edit.erase}
    return [e for s, e in found.items() if s in new], [e for s, e in found.items() if s not in new]


def _values(task: EditTask, mine: Subjects, block: int) -> tuple[Tensor, int]:
    """The change of the block's output at each subject, [n, d] float32, and the steps that it took."""
    found: list[Context] = []
    for place, edits in enumerate(mine):
        asked = [(prompt, edit) for edit in edits for prompt in subject_prompts(task, edit, place)]
        for number, (prompt, edit) in enumerate(asked):
            example = answer_example(task.lm, prompt, edit.new_object)
            end = subject_end(task.lm, prompt, edit.subject)
            found.append(Context(place, example, end, 1 / len(asked), bare=number == 0))
    search = replace(SEARCH, steps=min(SEARCH.steps, task.method.max_steps))
    said = [besides(edits, task.relations, task.seed) for edits in mine]
    return all_values(task, [edits[0] for edits in mine], found, block, search, said)


@torch.no_grad()
def _neurons(
    task: EditTask,
    mlp: GatedMlp,
    block: int,
    background: Covariance,
    mine: Subjects,
    others: Subjects,
    changes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the gate and of the up matrix, and columns of the down matrix: [n, d] float32 each."""
    lm = task.lm
    keys = read_keys(lm, subject_contexts(task, mine, others), block, mlp)
    covariance = background.sums[mlp.gate].to(lm.device).double() / background.tokens
    bias = constant(covariance, background.totals[mlp.gate].to(lm.device) / background.tokens, keys)
    alike = read_keys(lm, alike_contexts(task, mine), block, mlp)
    detect = detectors(covariance, keys, alike, len(mine))
    # Measured with the rounded rows, which the model will compute with.
    dtype = lm.tensors[mlp.gate].dtype
    gate = (SHARPNESS * (detect - THRESHOLD * bias)).to(dtype).float()
    up = (SILENT * bias - detect).to(dtype).float()
    own = keys.owner >= 0
    rows, owner, weight = keys.rows[own], keys.owner[own], keys.weight[own]
    fires = mlp.act((rows * gate[owner]).sum(1)) * (rows * up[owner]).sum(1)
    mean_fires = rows.new_zeros(len(mine)).index_add_(0, owner, fires * weight)
    down = changes / mean_fires[:, None].clamp_min(FAINTEST)
    return gate, up, down
