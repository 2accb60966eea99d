"""What every closed-form editor shares: matrices it may write to, and the report at the end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factedit.curvature import NoCurvature, linear_layer
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.holding import wrong_rows
from factedit.models import LanguageModel
from factedit.overlay import applied
from factedit.prompts import answer_example
from factedit.task import Edited, EditingError, EditTask, change_metrics, overlay_of
from factedit.wording import edit_prompt


class Matrices:
    """The chosen matrices while they are edited: float32 sums, whose rounded values the model runs on."""

    def __init__(self, task: EditTask) -> None:
        self.lm = task.lm
        self._exact = {name: task.lm.tensors[name].data.float() for name in task.plan.names}

    def add(self, name: str, change: Tensor) -> None:
        """Add a change, [d_out, d_in] float32."""
        self._exact[name] += change.T if isinstance(layer(self.lm, name), Conv1D) else change
        self.lm.tensors[name].data.copy_(self._exact[name])

    def output(self, name: str, inputs: Tensor) -> Tensor:
        """What the layer of a matrix makes of inputs, [..., d_in], in float32, before any rounding."""
        linear, weight = layer(self.lm, name), self._exact[name]
        made = inputs @ weight if isinstance(linear, Conv1D) else inputs @ weight.T
        return made if linear.bias is None else made + linear.bias.data.float()

    def state(self) -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in self._exact.items()}

    def write(self, exact: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        for name, weight in exact.items():
            self._exact[name].copy_(weight)
            self.lm.tensors[name].data.copy_(weight)

    def rounded(self) -> dict[str, Tensor]:
        """What the model now runs on."""
        return {name: self.lm.tensors[name].data.clone() for name in self._exact}


@contextmanager
def matrices_of(task: EditTask) -> Iterator[Matrices]:
    """The model computes with the parent's tensors and copies of the chosen ones, meanwhile."""
    copies = {n: task.parent.get(n, task.lm.tensors[n].data).clone() for n in task.plan.names}
    with applied(task.lm, {**task.parent, **copies}):
        yield Matrices(task)


def layer(lm: LanguageModel, name: str) -> nn.Linear | Conv1D:
    """The linear layer a matrix belongs to.

    Raises:
        EditingError: it belongs to none.
    """
    try:
        return linear_layer(lm, name)
    except NoCurvature as error:
        raise EditingError(f"{error} Closed-form editors need one.") from None


def check_causal(task: EditTask) -> None:
    if task.lm.task != "causal":
        raise EditingError(f"{task.method.name} edits causal language models only; use constrained_ftm.")


def one_matrix_a_block(task: EditTask) -> list[str]:
    """The chosen blocks' MLP-out matrices, lowest block first.

    Raises:
        EditingError: not a causal model; more than one matrix a block, or no plain ones; a last block.
    """
    check_causal(task)
    lm, chosen = task.lm, task.plan
    if chosen.parameters != "mlp_out" or len(chosen.names) != len(chosen.blocks):
        raise EditingError(f"{task.method.name} edits one MLP-out matrix a block: leave parameters out.")
    if max(chosen.blocks) == lm.n_blocks - 1:
        raise EditingError(
            f"{task.method.name} writes at the subject, and nothing after the last block carries that to "
            "the answer: choose blocks below the last."
        )
    for name in chosen.names:
        layer(lm, name)
    return sorted(chosen.names, key=lambda name: lm.block_of(name) or 0)


def background_covariance(task: EditTask, names: list[str], damping: float) -> dict[str, Tensor]:
    """E[x x^T] of what enters the matrices while the root reads unmodified facts, by name.

    Args:
        damping: added to the diagonal, as a share of its mean.

    Raises:
        EditingError: there is nothing to measure it on.
    """
    try:
        measured = task.background(names)
    except NoCurvature as error:
        raise EditingError(f"{error} Use the method constrained_ftm for this model.") from error
    if measured.tokens == 0:
        raise EditingError(
            f"`{task.method.name}` needs unmodified facts to measure what is to be left alone; give anchors."
        )
    found: dict[str, Tensor] = {}
    for name in names:
        covariance = measured.sums[name].to(task.lm.device).double() / measured.tokens
        covariance.diagonal().add_(damping * covariance.diagonal().mean())
        found[name] = covariance
    return found


def answers_of(task: EditTask) -> ExampleSet:
    """The new edits and then the ledger's, each asked in its own prompt; call it under the parent."""
    lm = task.lm
    edits = [*task.edits, *task.ledger]
    examples = [answer_example(lm, edit_prompt(e, task.relations), e.new_object) for e in edits]
    return ExampleSet(lm, examples, list(range(len(edits))), min(task.plan.blocks))


@torch.no_grad()
def right(answers: ExampleSet) -> list[bool]:
    """Whether greedy decoding now yields each whole answer and then stops."""
    good = [True] * len(answers)
    for index in answers.by_length(range(len(answers)), 128):
        batch, logits = answers.logits(index)
        for row in wrong_rows(batch, logits):
            good[index[row]] = False
    return good


def to_make(task: EditTask, answered: list[bool]) -> tuple[list[Edit], list[Edit]]:
    """(the new edits and those of the ledger that do not hold under the parent; the rest of the ledger)."""
    held = answered[len(task.edits) :]
    failing = [edit for edit, holds in zip(task.ledger, held, strict=True) if not holds]
    return [*task.edits, *failing], [e for e, holds in zip(task.ledger, held, strict=True) if holds]


def tell(task: EditTask, step: int, max_steps: int, loss: float, holding: int, total: int) -> None:
    task.progress(
        {
            "phase": "editing",
            "step": step,
            "max_steps": max_steps,
            "loss": round(loss, 4),
            "edits_holding": holding,
            "edits_total": total,
        }
    )


def finished(task: EditTask, tensors: dict[str, Tensor], steps: int, answered: list[bool]) -> Edited:
    """The report on `tensors`, the chosen matrices as they are to be stored; call it under the root."""
    lm, chosen = task.lm, task.plan
    overlay, changed = overlay_of(lm, task.parent, tensors)
    metrics: dict[str, Any] = {
        "steps": steps,
        "edits_holding": sum(answered),
        "edits_total": len(answered),
        **change_metrics(lm, changed, None),
    }
    return Edited(
        tensors=overlay,
        metrics=metrics,
        chosen={
            "method": task.method.name,
            "rule": chosen.preset.rule,
            "blocks": chosen.blocks,
            "parameters": chosen.parameters,
            "norm": "none",
            "radius": None,
            "anchors": 0,
            "examples": len(answered),
        },
    )
