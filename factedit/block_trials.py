"""Which blocks to change, and how far, for this model and this batch: tried before any training.

In each window of blocks the best first step inside an l_inf ball is taken: every weight moves by as much,
against its gradient's sign (the vertex of the ball that minimises the loss to first order). It is made as
long as it takes to bring the edits' loss down by a third, in the words it was taken in and in others. The
blocks are chosen where that moves the answers to unmodified prompts least. The best block changes with the
model, its state and the number of edits (Zhu et al. 2020, "Modifying Memories in Transformer Models",
section 4), so that no depth is right for all.

The step's source: Frank and Wolfe 1956, "An algorithm for quadratic programming"; the trial is ours.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from factedit.example_sets import ExampleSet
from factedit.holding import Anchors, mean_loss, next_token_log_probabilities
from factedit.methods.material import training_examples
from factedit.models import LanguageModel, iter_block_tensors
from factedit.overlay import RESERVED, applied
from factedit.prompts import Example, next_token_example
from factedit.specs import Blocks
from factedit.task import EditTask, Plan

EDITS, OTHER_WORDS, ANCHORS = 16, 1, 16
"""How many edits are tried, spread over the batch; each in so many other words; and unmodified prompts."""
LEFT = 2 / 3
"""The edits' loss is brought down to this share of what it is before."""
SHARE, TIMES = 1 / 256, 6
"""The first step's size, as a share of the root mean square of the usual blocks' weights; it is doubled, or
halved, so often at most. Other blocks are tried with the best size so far first."""
REACH = 0.5
"""No step is longer than training could get in so large a share of its own steps, all one way."""
NO_HARM = 1e-12
"""Less is rounding."""
ROOM, ROOM_ALONE = 10.0, 4.0
"""The ball's radius, in steps of the size that was chosen: training goes further, and not all one way. Less
where nothing but the ball holds unmodified facts, as in the paper."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A step in a window of blocks.

    Attributes:
        step: how far each weight moved.
        loss: of the edits, nats, averaged over the words that the step was taken in and others.
        harm: KL(root || stepped) at unmodified prompts' next tokens, nats.
    """

    blocks: list[int]
    step: float
    loss: float
    harm: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The best trial of each window; the best of all first."""

    trials: list[Trial]

    @property
    def blocks(self) -> list[int]:
        return self.trials[0].blocks

    def radius(self, *, alone: bool) -> float:
        """Of the l_inf ball that training needs; `alone`: nothing else holds unmodified facts."""
        return (ROOM_ALONE if alone else ROOM) * self.trials[0].step

    def report(self) -> list[dict[str, Any]]:
        return [
            {
                "blocks": each.blocks,
                "step": float(f"{each.step:.3g}"),
                "edits_loss": round(each.loss, 3),
                "anchors_kl": float(f"{each.harm:.3g}"),
            }
            for each in self.trials
        ]


def windows(n_blocks: int, usual: Sequence[int]) -> list[list[int]]:
    """Blocks side by side, as many as the usual ones, through the whole model; the usual ones first.

    At the model's ends one may overlap its neighbour, by half at most: fewer blocks are left out there.
    """
    width, first = len(usual), usual[0]
    starts = [*range(first % width, n_blocks - width + 1, width)]
    ends = [end for end in (0, n_blocks - width) if all(2 * abs(end - start) >= width for start in starts)]
    starts = [first, *(start for start in sorted([*starts, *ends]) if start != first)]
    return [list(range(start, start + width)) for start in starts]


def may_try(task: EditTask) -> bool:
    """Whether the method leaves the blocks open, and there are unmodified prompts to tell harm by.

    Neurons that are added have depths of their own, which the step of a trial says nothing about.
    """
    return _tries(task.plan) and bool(task.anchors)


def anchors_wanted(chosen: Plan, blocks: Blocks) -> int:
    """How many unmodified prompts an edit is to be given: the method's, and enough for a trial."""
    return max(chosen.anchors.count, ANCHORS if blocks == "auto" and _tries(chosen) else 0)


def _tries(chosen: Plan) -> bool:
    return chosen.preset.tried and not chosen.looking_up


def try_blocks(task: EditTask, longest: float | None = None) -> Choice:
    """The best step in each window as wide as the plan's blocks; the model is the same afterwards.

    Args:
        longest: how far a weight may move at most, where the caller says.

    Raises:
        NoWords: an edit with neither a prompt nor a known relation.
    """
    lm = task.lm
    own, others = _asked(task)
    spread = task.anchors[:: max(1, len(task.anchors) // ANCHORS)][:ANCHORS]
    anchors = [next_token_example(lm, prompt) for prompt in spread]
    answers = next_token_log_probabilities(ExampleSet(lm, anchors, range(len(anchors)), 0))
    most = min(REACH * task.method.learning_rate * task.method.max_steps, longest or math.inf)
    places = _places(task)
    found: list[Trial] = []
    wanted = first = 0.0
    with applied(lm, task.parent):
        for blocks in places:
            _tell(task, len(found), len(places))
            names = list(iter_block_tensors(lm, blocks, task.plan.parameters))
            asked, again, kept = (
                ExampleSet(lm, examples, range(len(examples)), blocks[0])
                for examples in (own, others, anchors)
            )
            window = _Window(lm, blocks, names, asked, again, Anchors(kept, answers))
            if not found:
                wanted, first = LEFT * window.tried(0.0).loss, window.scale * SHARE
            found.append(_searched(window.tried, min(first, most), most, wanted, found))
            found.sort(key=lambda trial: _rank(trial, wanted))
            first = found[0].step
    _tell(task, len(found), len(places))
    return Choice(found)


def _places(task: EditTask) -> list[list[int]]:
    """The windows to try: those with matrices to train.

    A ball that bounds all weights together is left if the next batch changes others: there the window that
    the parent has changed most is the only one. An l_inf ball bounds each weight, whichever are changed.
    """
    lm, chosen = task.lm, task.plan
    every = windows(lm.n_blocks, chosen.blocks)
    fit = [blocks for blocks in every if list(iter_block_tensors(lm, blocks, chosen.parameters))]
    if chosen.norm not in ("l_2", "fisher"):
        return fit
    changed = [lm.block_of(name) for name in task.parent if name not in RESERVED]
    most = max(fit, key=lambda blocks: sum(block in blocks for block in changed))
    return [most] if any(block in most for block in changed) else fit


def _rank(trial: Trial, wanted: float) -> tuple[float, float]:
    """The least first: who gets as far as wanted, by the harm; then the others, by how far they get."""
    return max(0.0, trial.loss - wanted), trial.harm


def _asked(task: EditTask) -> tuple[list[Example], list[Example]]:
    """(some of the edits in the words that a step is taken in; the same in others, if there are any)."""
    edits = [*task.edits, *task.ledger]
    some = edits[:: -(-len(edits) // EDITS)]
    examples, owner = training_examples(task.lm, some, task.relations, ours=OTHER_WORDS)
    own: list[Example] = []
    others: list[Example] = []
    for _, group in groupby(zip(owner, examples, strict=True), key=itemgetter(0)):
        first, *more = (example for _, example in group)
        own.append(first)
        others += more[-OTHER_WORDS:]
    return own, others or own


def _tell(task: EditTask, done: int, total: int) -> None:
    before = {"phase": "editing", "step": 0, "max_steps": task.method.max_steps}
    edits = {"edits_holding": 0, "edits_total": len(task.edits) + len(task.ledger)}
    task.progress({**before, **edits, "windows_tried": done, "windows_total": total})


def _searched(
    tried: Callable[[float], Trial], first: float, most: float, wanted: float, before: Sequence[Trial]
) -> Trial:
    """The step that brings the loss down as far as wanted, between two that were tried; or the nearest to it.

    Given up where it does more harm on the way than the best window's, the first of `before`, at its end.
    """
    bearable = before[0].harm if before and before[0].loss <= wanted else math.inf
    far = near = tried(first)
    for _ in range(TIMES):
        too_far = far.loss == math.inf
        if (near.loss > wanted) != (far.loss > wanted) or (
            too_far and near is not far and near.loss < math.inf
        ):
            break
        if near.loss <= wanted or too_far:
            near, far = tried(near.step / 2), near
        elif far.step < most and far.harm <= bearable:
            near, far = far, tried(min(2 * far.step, most))
        else:
            break
    return _between(near, far, wanted)


def _between(near: Trial, far: Trial, wanted: float) -> Trial:
    """Where the loss is as wanted, by a straight line in the logarithms of step and harm; else the better."""
    if (near.loss > wanted) == (far.loss > wanted) or math.inf in (near.loss, far.loss):
        return min(near, far, key=lambda trial: _rank(trial, wanted))
    part = (near.loss - wanted) / (near.loss - far.loss)
    step = math.exp((1 - part) * math.log(near.step) + part * math.log(far.step))
    harms = (math.log(max(each.harm, NO_HARM)) for each in (near, far))
    harm = math.exp(sum(share * each for share, each in zip((1 - part, part), harms, strict=True)))
    return Trial(near.blocks, step, wanted, harm)


class _Window:
    """Some blocks whose weights can be moved against their gradients' signs, and are back again.

    Attributes:
        scale: the root mean square of the weights.
    """

    def __init__(
        self,
        lm: LanguageModel,
        blocks: list[int],
        names: Sequence[str],
        asked: ExampleSet,
        again: ExampleSet,
        kept: Anchors,
    ) -> None:
        """`asked`: what the step is taken on; `again`: the same in other words; `kept`: what it may harm."""
        self._lm, self._blocks = lm, blocks
        self._asked, self._again, self._kept = asked, again, kept
        self._before = {name: lm.tensors[name].data for name in names}
        squares = sum(float(each.float().square().sum()) for each in self._before.values())
        self.scale = math.sqrt(squares / sum(each.numel() for each in self._before.values()))
        self._signs = _signs(lm, names, asked)

    @torch.no_grad()
    def tried(self, size: float) -> Trial:
        with self._moved(size):
            loss = (float(mean_loss(self._asked)) + float(mean_loss(self._again))) / 2
            harm = float(self._kept.divergence(range(len(self._kept.examples))))
        if not math.isfinite(loss + harm):
            loss = harm = math.inf  # too long a step for the model's dtype
        return Trial(self._blocks, size, loss, harm)

    @contextmanager
    def _moved(self, size: float) -> Iterator[None]:
        try:
            for name, weight in self._before.items():
                self._lm.tensors[name].data = (weight.float() - size * self._signs[name]).to(weight.dtype)
            yield
        finally:
            for name, weight in self._before.items():
                self._lm.tensors[name].data = weight


def _signs(lm: LanguageModel, names: Sequence[str], asked: ExampleSet) -> Mapping[str, Tensor]:
    """Of the loss's gradient, by name."""
    parameters = {name: lm.tensors[name].requires_grad_(True) for name in names}
    try:
        mean_loss(asked).backward()
        return {
            name: torch.zeros_like(each.data) if each.grad is None else each.grad.sign()
            for name, each in parameters.items()
        }
    finally:
        for each in parameters.values():
            each.grad = None
            each.requires_grad_(False)
