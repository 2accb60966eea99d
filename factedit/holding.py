"""What holds and what stays: whether answers are right, how far off they are, how far from the root's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.example_sets import ExampleSet
from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.prompts import Batch, Example, batches

HOLDS_FROM = 0.5
"""A fact holds when each of its target tokens is the most probable one and at least this probable."""


def wrong_rows(batch: Batch, logits: Tensor, at_least: float = 0.0) -> set[int]:
    """The rows with a target that is not the most probable token, or less probable than this.

    logits: [N, V] at the batch's target positions.
    """
    wrong = logits.argmax(-1) != batch.targets
    if at_least > 0:
        probability = logits.softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)
        wrong |= ~(probability >= at_least)
    return set(batch.rows[wrong].tolist())


@torch.no_grad()
def holding(lm: LanguageModel, examples: Sequence[Example], probability: float = HOLDS_FROM) -> list[bool]:
    """Whether each example's targets are all the most probable tokens, and at least this probable."""
    held = [True] * len(examples)
    for batch in batches(lm, examples, lm.at_once(64)):
        for row in wrong_rows(batch, target_logits(lm, batch).float(), probability):
            held[int(batch.index[row])] = False
    return held


def mean_loss(examples: ExampleSet) -> Tensor:
    """The cross-entropy of the examples' targets, averaged over each example's, nats; a scalar."""
    index = range(len(examples))
    return summed_loss(*examples.logits(index), len(index)) / len(index)


def summed_loss(batch: Batch, logits: Tensor, examples: int) -> Tensor:
    """The cross-entropy of a batch's targets, averaged over each example's, summed over the examples."""
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    # Averaged over each example's target tokens first: a long object counts no more than a short one.
    counts = torch.bincount(batch.rows, minlength=examples)
    return (losses / counts[batch.rows]).sum()


@dataclass(frozen=True, slots=True)
class Anchors:
    """Unmodified prompts, and the root's log-probabilities of their next token, [n, V]."""

    examples: ExampleSet
    root_answers: Tensor

    def divergence(self, index: Sequence[int]) -> Tensor:
        """KL(root || edited) at the answer positions of some anchors, averaged."""
        return self.summed_divergence(index) / len(index)

    def summed_divergence(self, index: Sequence[int]) -> Tensor:
        """The same, summed over the anchors."""
        batch, logits = self.examples.logits(index)
        wanted = self.root_answers[batch.index.to(self.root_answers.device)].float()
        return torch.nn.functional.kl_div(logits.log_softmax(-1), wanted, reduction="sum", log_target=True)


@torch.no_grad()
def next_token_log_probabilities(examples: ExampleSet) -> Tensor:
    """What the model now answers at one position an example: log-probabilities, [n, V], in its dtype."""
    lm, rows = examples.lm, None
    for index in examples.by_length(range(len(examples)), 128):
        batch, logits = examples.logits(index)
        if rows is None:
            rows = torch.empty((len(examples), logits.shape[-1]), dtype=lm.model.dtype, device=logits.device)
        rows[batch.index.to(rows.device)] = logits.log_softmax(-1).to(rows.dtype)
    assert rows is not None
    return rows
