"""UltraEdit: one pass forward and back, and a ridge regression; no training, subject or covariance.

Source: Gu et al. 2025, "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language
Models", section 3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factedit.example_sets import ExampleSet
from factedit.holding import wrong_rows
from factedit.methods.least_squares import RunningMoments, ridge_regression
from factedit.methods.weights import (
    Matrices,
    answers_of,
    check_causal,
    finished,
    layer,
    matrices_of,
    right,
    tell,
)
from factedit.models import LanguageModel
from factedit.task import Edited, EditTask

BATCH = 32
RIDGE = 1.0
RATES = tuple(2.0 ** (power / 2) for power in range(-14, 9))
TRIED = 128
"""The change is linear in the rate; so the rate is the smallest that holds most of this many edits."""


@dataclass(frozen=True, slots=True)
class Features:
    """Of a matrix at every answer position: what enters it, [n, d_in], and the loss's gradient at what
    leaves it, [n, d_out]; both float32."""

    inputs: Tensor
    gradients: Tensor


def edit_by_ultraedit(task: EditTask) -> Edited:
    """Move each matrix's outputs at the answers against their normalised gradients.

    Inputs and gradients are normalised by the mean and the deviation over all edits so far: those
    of the ledger as the root has them, then the new ones'. The ledger's inputs take part in the
    regression with no change wanted.
    """
    check_causal(task)
    names = task.plan.names
    moments = {name: _moments_of(task, name) for name in names}
    if task.ledger:
        ledger = range(len(task.edits), len(task.edits) + len(task.ledger))
        _remember(moments, _features(answers_of(task), names, ledger))
    with matrices_of(task) as matrices:
        answers = answers_of(task)
        answered = right(answers)
        old = [i for i, holds in enumerate(answered) if holds and i >= len(task.edits)]
        new = sorted(set(range(len(answered))) - set(old))
        steps = 0
        if new:
            found, kept = _features(answers, names, new), _features(answers, names, old)
            _remember(moments, found)
            wanted = {name: _wanted(moments[name], found[name]) for name in names}
            _as_long_as_outputs(wanted, found, matrices)
            changes = {
                name: ridge_regression(found[name].inputs, kept[name].inputs, wanted[name], RIDGE)
                for name in names
            }
            sample = new[:: max(1, len(new) // TRIED)]
            steps = 1 + _write_at_best_rate(task, matrices, answers, sample, changes)
        tensors, answered = matrices.rounded(), right(answers)
    return finished(task, tensors, steps, answered)


def _moments_of(task: EditTask, name: str) -> RunningMoments:
    layer(task.lm, name)  # refuses what is no plain matrix
    return RunningMoments(sum(task.lm.tensors[name].shape), task.lm.device)


def _remember(moments: Mapping[str, RunningMoments], features: Mapping[str, Features]) -> None:
    for name, found in features.items():
        moments[name].update(torch.cat([found.inputs, found.gradients], dim=1))


def _wanted(moments: RunningMoments, found: Features) -> Tensor:
    """The change wanted of the matrix's output at each position, at a rate of one: -|h|^2 g."""
    rows = moments.normalise(torch.cat([found.inputs, found.gradients], dim=1))
    h, g = rows.split([found.inputs.shape[1], found.gradients.shape[1]], dim=1)
    change: Tensor = -h.square().sum(1, keepdim=True) * g
    return change


def _as_long_as_outputs(
    wanted: Mapping[str, Tensor], found: Mapping[str, Features], matrices: Matrices
) -> None:
    """Scale the changes, all alike, until they are as long as what now leaves the matrices, on average."""
    now = sum(float(matrices.output(name, found[name].inputs).norm(dim=1).mean()) for name in wanted)
    asked = sum(float(change.norm(dim=1).mean()) for change in wanted.values())
    for change in wanted.values():
        change *= now / max(asked, 1e-12)


def _write_at_best_rate(
    task: EditTask,
    matrices: Matrices,
    answers: ExampleSet,
    sample: Sequence[int],
    changes: Mapping[str, Tensor],
) -> int:
    """Write the changes at the smallest rate that makes most edits hold; how many rates were tried."""
    start = matrices.state()
    best, most, least, tries = 0.0, 0, float("inf"), 0
    for rate in RATES[: task.method.max_steps]:
        matrices.write({name: start[name] for name in changes})
        for name, change in changes.items():
            matrices.add(name, rate * change)
        loss, holding = _answered(answers, sample)
        tries += 1
        if not isfinite(loss):  # the model is broken, and would be by any higher rate
            break
        tell(task, tries, len(RATES), loss, holding, len(sample))
        if holding > most or (holding == most == 0 and loss < least):
            best, most, least = rate, holding, loss
        if holding == len(sample):
            break
    matrices.write({name: start[name] for name in changes})
    for name, change in changes.items():
        matrices.add(name, best * change)
    return tries


@torch.no_grad()
def _answered(answers: ExampleSet, sample: Sequence[int]) -> tuple[float, int]:
    """(mean loss per token, how many are right) of some answers."""
    losses, wrong = [], 0
    for index in answers.by_length(sample, 128):
        batch, logits = answers.logits(index)
        losses.append(torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none"))
        wrong += len(wrong_rows(batch, logits))
    return float(torch.cat(losses).mean()), len(sample) - wrong


def _features(answers: ExampleSet, names: Sequence[str], which: Sequence[int]) -> dict[str, Features]:
    """One pass forward and back over some answers."""
    parts: dict[str, list[Features]] = {name: [] for name in names}
    for index in answers.by_length(which, BATCH):
        with _watched(answers.lm, names) as seen:
            batch, logits = answers.logits(index)
            # Summed, so that a row's gradient does not depend on what else is in the batch.
            torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
        for name, (entered, left) in seen.items():
            gradient = torch.zeros_like(left) if left.grad is None else left.grad
            rows = (batch.rows, batch.cols)
            parts[name].append(Features(entered[rows].float(), gradient[rows].float()))
    return {name: _joined(answers.lm, name, found) for name, found in parts.items()}


def _joined(lm: LanguageModel, name: str, found: Sequence[Features]) -> Features:
    linear = layer(lm, name)
    d_in, d_out = linear.weight.shape if isinstance(linear, Conv1D) else linear.weight.shape[::-1]
    none = Features(torch.zeros((0, d_in), device=lm.device), torch.zeros((0, d_out), device=lm.device))
    parts = [none, *found]
    return Features(torch.cat([f.inputs for f in parts]), torch.cat([f.gradients for f in parts]))


@contextmanager
def _watched(lm: LanguageModel, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """By matrix, what enters it and a zero added to what leaves it, whose gradient is that of what leaves."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            nothing = torch.zeros_like(output, requires_grad=True)
            seen[name] = (args[0].detach(), nothing)
            return output + nothing

        return hook

    handles = [layer(lm, name).register_forward_hook(watch(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
