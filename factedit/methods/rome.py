"""ROME: one fact at a time, one rank-one change of one matrix each.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3.1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from factedit.facts import Edit
from factedit.methods.keys import contexts, lookups, mean_over_contexts, read_inputs, read_outputs
from factedit.methods.least_squares import rank_one, unused_directions
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
from factedit.task import Edited, EditingError, EditTask

LEAD_INS = 3
SEARCH = Search(steps=25, pace=0.5, longest=4.0)


def edit_by_rome(task: EditTask) -> Edited:
    """Each edit's value is made the matrix's answer to its key, one edit after another.

    Values are sought for a group of edits about different subjects at once, under the weights as
    they are before the group.
    """
    names = one_matrix_a_block(task)
    if len(names) > 1:
        raise EditingError("rome edits one block: name one.")
    (name,), (block,) = names, task.plan.blocks
    lm, module = task.lm, layer(task.lm, name)
    covariance = background_covariance(task, [name], task.method.damping)[name]
    search = replace(SEARCH, steps=min(SEARCH.steps, task.method.max_steps))
    steps, holding = 0, 0
    with matrices_of(task) as matrices:
        answers = answers_of(task)
        all_edits, _ = to_make(task, right(answers))
        groups, total = list(_different_subjects(all_edits)), len(all_edits)
        for group in groups:
            edits = [all_edits[i] for i in group]
            found = contexts(lm, edits, task.relations, LEAD_INS, task.seed + group[0])
            before, held = steps, holding

            def told(step: int, losses: list[float], before: int = before, held: int = held) -> None:
                good = held + sum(loss <= search.enough for loss in losses)
                mean = sum(losses) / len(losses)
                tell(task, before + step, len(groups) * search.steps, mean, good, total)

            values = seek_values(lm, module, block, found, [e.subject for e in edits], search, told)
            texts = lookups(lm, found, block)
            keys = mean_over_contexts(read_inputs(texts, module), found)
            wanted = mean_over_contexts(read_outputs(texts, module), found) + values.changes
            directions = unused_directions(covariance, keys)
            for key, direction, value in zip(keys, directions, wanted, strict=True):
                missing = value - matrices.output(name, key)
                matrices.add(name, rank_one(direction, key, missing))
            steps += values.steps
            holding += sum(loss <= search.enough for loss in values.losses)
        tensors, answered = matrices.rounded(), right(answers)
    return finished(task, tensors, steps, answered)


def _different_subjects(edits: Sequence[Edit]) -> Iterator[list[int]]:
    """The edits' places in order, in groups in which no subject occurs twice."""
    group: list[int] = []
    subjects: set[str] = set()
    for place, edit in enumerate(edits):
        if len(group) == GROUP or edit.subject in subjects:
            yield group
            group, subjects = [], set()
        group.append(place)
        subjects.add(edit.subject)
    if group:
        yield group
