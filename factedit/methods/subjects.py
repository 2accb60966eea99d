"""Facts written where their subject is looked up: a value sought in many wordings, then one neuron a subject.

The value is ROME's: the change of the hidden vector at the subject's last token that makes the answer (Meng
et al. 2022, section 3.1), sought in the relation's other wordings too, so that it holds in words that were
never trained on. The neuron that adds it there, and nowhere else, is solved for (factedit.methods.detectors).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from factedit.curvature import Covariance
from factedit.facts import Edit
from factedit.gated_mlp import GatedMlp, gated_mlp
from factedit.methods.detectors import (
    GAIN,
    SHARPNESS,
    THRESHOLD,
    constant,
    detectors,
    least_used,
    measured,
)
from factedit.methods.keys import Context, lookups, read_inputs, subject_end
from factedit.methods.memit import all_values
from factedit.methods.values import Search
from factedit.methods.weights import matrices_of
from factedit.models import LanguageModel
from factedit.prefixes import PREFIXES
from factedit.prompts import Example, answer_example, prompt_ids
from factedit.sayings import besides
from factedit.task import EditTask
from factedit.wording import training_prompts

SEARCH = Search(steps=20, pace=0.2, longest=0.5, essence=0.3, enough=0.05, at_once=2)
"""A longer change holds in more words, and makes more of what else is known of the subject forgotten."""
LEAD_INS = 12
"""Neutral sentences after which each subject's key is also read."""

Subjects = list[list[Edit]]
"""Edits of one subject share its neuron."""


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
        asked = [(prompt, edit) for edit in edits for prompt in _prompts(task, edit, place)]
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
    found = [
        *(context for place, edits in enumerate(mine) for context in _keys(task, edits, place, LEAD_INS)),
        *(context for edits in others for context in _keys(task, edits, -1, 0)[:1]),
    ]
    keys = read_inputs(lookups(lm, found, block), lm.model.get_submodule(mlp.gate.removesuffix(".weight")))
    owner = torch.tensor([context.edit for context in found], device=keys.device)
    weight = torch.tensor([context.weight for context in found], device=keys.device)
    covariance = background.sums[mlp.gate].to(keys.device).double() / background.tokens
    mean = background.totals[mlp.gate].to(keys.device) / background.tokens
    bias = constant(covariance, mean)
    gate = SHARPNESS * (detectors(covariance, keys, weight, owner, len(mine)) - THRESHOLD * bias)
    # Measured with the rounded rows, which the model will compute with.
    dtype = lm.tensors[mlp.gate].dtype
    gate, up = gate.to(dtype).float(), bias.to(dtype).float().expand(len(mine), -1)
    own = owner >= 0
    fires = mlp.act((keys * gate[owner]).sum(1)) * (keys @ up[0])
    mean_fires = keys.new_zeros(len(mine)).index_add_(0, owner[own], (fires * weight)[own])
    down = GAIN * changes / mean_fires[:, None].clamp_min(1.0)
    return gate, up, down


def _keys(task: EditTask, edits: Sequence[Edit], owner: int, lead_ins: int) -> list[Context]:
    """A subject as far as it is read when it is looked up: bare, and after lead-in sentences."""
    prompts = [prompt for edit in edits for prompt in _prompts(task, edit, max(owner, 0))]
    heads = _heads(prompts, edits[0].subject)
    start = task.seed + max(owner, 0) * lead_ins
    led = [PREFIXES[(start + i) % len(PREFIXES)] for i in range(lead_ins)]
    texts = [*heads, *(f"{sentence} {heads[i % len(heads)]}" for i, sentence in enumerate(led))]
    return [_context(task.lm, text, owner, 1 / len(texts)) for text in texts]


def _context(lm: LanguageModel, text: str, owner: int, weight: float) -> Context:
    ids = tuple(prompt_ids(lm, text))
    return Context(owner, Example(ids, (len(ids) - 1,), (0,)), len(ids) - 1, weight, bare=False)


def _prompts(task: EditTask, edit: Edit, place: int) -> list[str]:
    return training_prompts(edit, task.relations, place, other_words=task.plan.preset.other_words)


def _heads(prompts: Sequence[str], subject: str) -> list[str]:
    """What stands up to the subject's end, each once; whole prompts, where the subject is not in them."""
    heads: list[str] = []
    for prompt in prompts:
        at = prompt.lower().rfind(subject.lower())
        heads.append(prompt if at < 0 else prompt[: at + len(subject)])
    return list(dict.fromkeys(heads))
