"""Ours: a fact is written where its subject is looked up, and finished where the answer is formed.

Stage one, in the lower blocks: a neuron is added for each edited subject, which makes the answer in many
wordings (factedit.methods.subjects). What is said of a subject there is found again in words that were never
trained on; a text at which no neuron fires is answered as before, to the last bit. Stage two, in the upper
blocks: neurons finish the answers that are not right yet, in other words too (factedit.methods.finishing).
Stage three, there too: what fails even so, unless it is a few of many, is fine-tuned, beside anchors, by
steps that avoid the directions which unmodified facts use (factedit.methods.fine_tuning).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from factedit.added_neurons import Neurons
from factedit.anchors import enough, fewer
from factedit.facts import Edit
from factedit.holding import holding
from factedit.methods.detectors import measured
from factedit.methods.fine_tuning import fine_tune
from factedit.methods.finishing import ROUNDS, finish_answers, finishing_mlps
from factedit.methods.neurons import with_neurons
from factedit.methods.subjects import write_at_subjects
from factedit.models import LanguageModel
from factedit.overlay import applied
from factedit.prompts import answer_example
from factedit.task import Edited, EditTask, Plan, change_metrics
from factedit.wording import plain_prompts

SURELY = 0.25
"""The least probability of an answer's tokens, each the most probable, that needs no fine-tuning: whatever
changes a weight of the root's gives other prompts other answers, be it by rounding alone."""

SPARED = 0.025
"""The share of the edits that is left as it is rather than change the root's weights for its sake."""


def gates_read(lm: LanguageModel, plan: Plan) -> list[str]:
    """The matrices of blocks to which neurons may be added: what enters them in running text is asked for.

    Whoever keeps that (factedit.running_text) may read it before the first edit.
    """
    blocks = [*plan.subject_blocks, *plan.asking, *finishing_mlps(lm, plan)]
    return measured(lm, list(dict.fromkeys(blocks))) if plan.looking_up else []


def edit_by_auto(task: EditTask) -> Edited:
    """As many of the stages as it takes; the third alone where no neuron may be added.

    The constraint bounds stage three. A caller's own constraint bounds everything, and so leaves the others
    out (factedit.task.plan): a neuron that fires at one subject alone is no small change of a few weights.
    Facts to be erased are fine-tuned only.
    """
    if not task.plan.looking_up:
        return fine_tune(task)
    ahead = task.method.max_steps

    def first(state: dict[str, Any]) -> None:
        task.progress({**state, "max_steps": state["max_steps"] + ahead})

    written = write_at_subjects(replace(task, progress=first))
    looked_up = with_neurons(task.parent, written.neurons)
    parent, left, steps = _finished(replace(task, progress=first), looked_up, written.steps)
    erased = [edit for edit in [*task.edits, *task.ledger] if edit.erase]
    spared = not erased and _few(task, left)
    answered = _as_it_is(task, parent, left) if spared else _fine_tuned(task, parent, left + erased, steps)
    (before, _), (at_subjects, silent), (at_last, silent_at_last) = (
        _count(overlay) for overlay in (task.parent, looked_up, parent)
    )
    metrics = {
        **answered.metrics,
        "steps": answered.metrics["steps"] + steps,
        "word_neurons": written.readers,
        "neurons": at_subjects - before,
        "asking_neurons": silent_at_last - silent,
        "answer_neurons": at_last - at_subjects,
    }
    chosen = {
        **answered.chosen,
        "blocks": task.plan.blocks,
        "lookup_blocks": task.plan.looking_up,
        "reading_block": task.plan.reading,
        "asking_blocks": task.plan.asking,
    }
    return replace(answered, metrics=metrics, chosen=chosen)


def _finished(
    task: EditTask, looked_up: dict[str, Tensor], steps: int
) -> tuple[dict[str, Tensor], list[Edit], int]:
    """(the overlay with the answers' neurons; the edits that do not hold even so; the steps so far).

    Where the first round does more harm than the others can mend, it is left out.
    """
    found: list[tuple[list[Edit], dict[str, Tensor]]] = []
    for rounds in (ROUNDS, ROUNDS[1:]):
        parent = looked_up
        for words in rounds:
            neurons, more = finish_answers(task, parent, words, steps)
            parent, steps = with_neurons(task.parent, neurons), steps + more
            if not (left := _left(task, parent)):
                break
        if _few(task, left):
            return parent, left, steps
        found.append((left, parent))
    left, parent = min([(_left(task, looked_up), looked_up), *found], key=lambda each: len(each[0]))
    return parent, left, steps


def _count(overlay: Mapping[str, Tensor]) -> tuple[int, int]:
    """(neurons that say something, silent ones)."""
    if (neurons := Neurons.of(overlay)) is None:
        return 0, 0
    speaking = int(neurons.down.any(1).sum())
    return speaking, len(neurons.down) - speaking


def _few(task: EditTask, left: Sequence[Edit]) -> bool:
    """Whether they may be spared, both of this batch's edits and of all in force."""
    new = {edit.id for edit in task.edits}
    mine = sum(edit.id in new for edit in left)
    return mine <= SPARED * len(new) and len(left) <= SPARED * (len(task.edits) + len(task.ledger))


def _left(task: EditTask, parent: Mapping[str, Tensor]) -> list[Edit]:
    """The edits that do not hold yet in their plainest words, and the user's; of those that do not erase."""
    in_force = [edit for edit in [*task.edits, *task.ledger] if not edit.erase]
    plain = [plain_prompts(item, task.relations) for item in in_force]
    examples = [
        answer_example(task.lm, prompt, item.new_object)
        for item, prompts in zip(in_force, plain, strict=True)
        for prompt in prompts
    ]
    owner = [place for place, prompts in enumerate(plain) for _ in prompts]
    with applied(task.lm, parent):
        held = holding(task.lm, examples, SURELY)
    failing = {place for place, holds in zip(owner, held, strict=True) if not holds}
    return [item for place, item in enumerate(in_force) if place in failing]


def _fine_tuned(task: EditTask, parent: Mapping[str, Tensor], left: Sequence[Edit], before: int) -> Edited:
    """What does not hold yet, in the upper blocks."""

    def second(state: dict[str, Any]) -> None:
        task.progress({**state, "step": state["step"] + before, "max_steps": state["max_steps"] + before})

    # The neurons answer to other words already: only what is asked in the edit's own is finished here.
    preset = replace(task.plan.preset, other_words=False)
    answering = replace(task.plan, preset=preset, blocks=task.plan.answering, looking_up=[], reading=None)
    anchors = fewer(task.anchors, task.edits, enough(len(left)))
    return fine_tune(replace(task, plan=answering, parent=parent, anchors=anchors, progress=second))


def _as_it_is(task: EditTask, parent: Mapping[str, Tensor], left: Sequence[Edit]) -> Edited:
    """The neurons alone: all edits but these hold with them."""
    chosen, edits = task.plan, len(task.edits) + len(task.ledger)
    return Edited(
        tensors={name: tensor.cpu() for name, tensor in parent.items()},
        metrics={
            "steps": 0,
            "edits_holding": edits - len(left),
            "edits_total": edits,
            **change_metrics(task.lm, {}, None),
        },
        chosen={
            "method": task.method.name,
            "rule": chosen.preset.rule,
            "parameters": chosen.parameters,
            "norm": chosen.norm,
            "radius": chosen.radius,
            "anchors": 0,
            "examples": edits,
        },
    )
