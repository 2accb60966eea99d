"""MEMIT: many edits at once, spread by least squares over the matrices of several blocks.

Source: Meng et al. 2023, "Mass-Editing Memory in a Transformer", section 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from factedit.facts import Edit
from factedit.methods.keys import (
    Context,
    contexts,
    lookups,
    mean_over_contexts,
    read_inputs,
    read_outputs,
)
from factedit.methods.least_squares import protected
from factedit.methods.values import GROUP, Search, seek_values
from factedit.methods.weights import (
    answers_of,
    background_covariance,
    finished,
    layer,
    matrices_of,
    one_matrix_a_block,
    right,
    tell,
    to_make,
)
from factedit.task import Edited, EditTask

LEAD_INS = 2
SEARCH = Search(steps=25, pace=0.1, longest=0.75)
WEIGHT, WEIGHT_AN_EDIT = 100.0, 1.0
"""How many average tokens of the background the edits' keys are weighed against: at least, and for each edit.

Meng et al. 2023 take 15,000 for up to ten thousand edits."""

Solver = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""(matrix name, keys, kept keys, residuals) -> change; shapes as in factedit.methods.least_squares."""


def edit_by_memit(task: EditTask) -> Edited:
    """Hidden values of the last chosen block, reached by small changes of all chosen blocks' matrices.

    The ledger's keys take part with no residual: what they yield under the parent is kept.
    """
    covariance = background_covariance(task, one_matrix_a_block(task), task.method.damping)

    def solve(name: str, keys: Tensor, kept: Tensor, residuals: Tensor) -> Tensor:
        weight = max(WEIGHT, WEIGHT_AN_EDIT * (len(keys) + len(kept)))
        return protected(covariance[name], weight, keys, kept, residuals)

    return spread(task, solve, SEARCH)


def spread(task: EditTask, solve: Solver, search: Search) -> Edited:
    """Seek the values, then let each block in turn make its share of what is still missing."""
    lm, names = task.lm, one_matrix_a_block(task)
    first, last = min(task.plan.blocks), max(task.plan.blocks)
    search = replace(search, steps=min(search.steps, task.method.max_steps))
    with matrices_of(task) as matrices:
        answers = answers_of(task)
        edits, held = to_make(task, right(answers))
        steps = 0
        if edits:
            found = contexts(lm, edits, task.relations, LEAD_INS, task.seed)
            old = contexts(lm, held, task.relations, LEAD_INS, task.seed)
            changes, steps = _all_values(task, edits, found, last, search)
            edited, kept = lookups(lm, found, first), lookups(lm, old, first)
            bare = lookups(lm, [c for c in found if c.bare], first)
            wanted = read_outputs(bare, lm.blocks[last]) + changes
            for left, name in zip(range(len(names), 0, -1), names, strict=True):
                keys = mean_over_contexts(read_inputs(edited, layer(lm, name)), found)
                kept_keys = keys[:0]
                if old:
                    kept_keys = mean_over_contexts(read_inputs(kept, layer(lm, name)), old)
                missing = (wanted - read_outputs(bare, lm.blocks[last])) / left
                matrices.add(name, solve(name, keys, kept_keys, missing))
        tensors, answered = matrices.rounded(), right(answers)
    return finished(task, tensors, steps, answered)


def _all_values(
    task: EditTask,
    edits: Sequence[Edit],
    found: Sequence[Context],
    block: int,
    search: Search,
) -> tuple[Tensor, int]:
    """The changes of the block's output, [n, d], group by group; the steps that were taken."""
    total, groups = len(edits), -(-len(edits) // GROUP)
    changes: list[Tensor] = []
    steps, holding = 0, 0
    for group in range(groups):
        low, high = group * GROUP, min(total, (group + 1) * GROUP)
        mine = [replace(c, edit=c.edit - low) for c in found if low <= c.edit < high]
        before, held = steps, holding

        def told(step: int, losses: list[float], before: int = before, held: int = held) -> None:
            good = held + sum(loss <= search.enough for loss in losses)
            tell(task, before + step, groups * search.steps, sum(losses) / len(losses), good, total)

        subjects = [edit.subject for edit in edits[low:high]]
        values = seek_values(task.lm, task.lm.blocks[block], block, mine, subjects, search, told)
        changes.append(values.changes)
        steps += values.steps
        holding += sum(loss <= search.enough for loss in values.losses)
    return torch.cat(changes), steps
