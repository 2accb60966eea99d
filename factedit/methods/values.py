"""What a fact's value should be: the change of a hidden vector, at the lookup, that makes the answer.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", equation 4.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factedit.forward import target_logits
from factedit.methods.keys import Context, lookups, read_outputs, subject_end
from factedit.models import LanguageModel
from factedit.prompts import Batch, next_token_example
from factedit.training import ExampleSet

GROUP = 32
"""Edits whose values are sought in one batch."""


@dataclass(frozen=True, slots=True)
class Search:
    """How values are sought. Lengths are shares of the unchanged vector's, so that they suit any model.

    Attributes:
        pace: the length of Adam's first step.
        longest: the longest change.
        essence: weight of the KL that holds what is said of the subject besides the fact.
        enough: an edit is left alone once its loss is below this.
    """

    steps: int
    pace: float
    longest: float
    essence: float = 0.0625
    enough: float = 0.05


@dataclass(frozen=True, slots=True)
class Values:
    """Changes of the vectors, [n, d] float32; each edit's last loss; the steps that were taken."""

    changes: Tensor
    losses: list[float]
    steps: int


def seek_values(
    lm: LanguageModel,
    module: nn.Module,
    block: int,
    found: Sequence[Context],
    subjects: Sequence[str],
    search: Search,
    told: Callable[[int, list[float]], None],
) -> Values:
    """The change of `module`'s output at each edit's lookup that makes its answer, for all edits at once.

    Args:
        module: block `block`, or a matrix inside it.
        found: the edits' contexts, `edit` counted from 0; `subjects`: one an edit.
        told: called with each step's number and every edit's loss.
    """
    objective = _Objective(lm, module, block, found, subjects, search.essence)
    bare = lookups(lm, [c for c in found if c.bare], block)
    unchanged = read_outputs(bare, module)
    length = unchanged.norm(dim=1, keepdim=True)
    shares = torch.zeros_like(unchanged, requires_grad=True)
    adam = torch.optim.Adam([shares], lr=search.pace / unchanged.shape[1] ** 0.5)
    settled = torch.zeros_like(shares.data)
    losses = [float("inf")] * len(subjects)
    open_edits = list(range(len(subjects)))
    step = 0
    while True:
        answer, essence = objective(shares * length, open_edits)
        for edit, loss in zip(open_edits, answer.tolist(), strict=True):
            losses[edit] = loss
        last = step >= search.steps
        done = [e for e in open_edits if last or losses[e] <= search.enough]
        settled[done] = shares.data[done]
        told(step, losses)
        still = [n for n, edit in enumerate(open_edits) if edit not in set(done)]
        if not still:
            return Values(settled * length, losses, step)
        adam.zero_grad()
        (answer + search.essence * essence)[still].sum().backward()
        adam.step()
        with torch.no_grad():
            shares.mul_((search.longest / shares.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1))
        open_edits = [open_edits[n] for n in still]
        step += 1


class _Objective:
    """The loss of every edit, given the changes of its hidden vector."""

    def __init__(
        self,
        lm: LanguageModel,
        module: nn.Module,
        block: int,
        found: Sequence[Context],
        subjects: Sequence[str],
        essence: float,
    ) -> None:
        self._lm, self._module = lm, module
        sayings = [f"{subject} is a" for subject in subjects] if essence > 0 else []
        examples = [c.example for c in found] + [next_token_example(lm, saying) for saying in sayings]
        owner = [c.edit for c in found] + list(range(len(sayings)))
        self._examples = ExampleSet(lm, examples, owner, block)
        self._owner = torch.tensor(owner, device=lm.device)
        ends = [subject_end(lm, saying, subjects[i]) for i, saying in enumerate(sayings)]
        self._lookup = torch.tensor([c.lookup for c in found] + ends, device=lm.device)
        per_edit = torch.bincount(self._owner[: len(found)], minlength=len(subjects))
        targets = torch.tensor([len(e.targets) for e in examples], device=lm.device)
        # Each context counts alike, however many tokens its answer has.
        self._weight = 1 / (targets * per_edit[self._owner])
        self._facts = len(found)
        self._before: Tensor | None = None  # log-probabilities after each saying, [n, V]

    def __call__(self, changes: Tensor, open_edits: list[int]) -> tuple[Tensor, Tensor]:
        """(loss of the answer, KL of the saying) of each open edit, [n open] each."""
        chosen = set(open_edits)
        index = [i for i, edit in enumerate(self._examples.owner) if edit in chosen]
        batch, prefix = self._examples.batch(index)
        with self._changed(batch, index, changes):
            logits = target_logits(
                self._lm, batch, prefix=prefix, first_block=self._examples.first_block
            ).float()
        example = torch.tensor(index, device=logits.device)[batch.rows]
        is_fact = example < self._facts
        entropy = torch.nn.functional.cross_entropy(logits[is_fact], batch.targets[is_fact], reduction="none")
        facts = example[is_fact]
        total = changes.new_zeros(len(changes))
        answer = total.index_add(0, self._owner[facts], entropy * self._weight[facts])
        essence = total
        if not bool(is_fact.all()):
            now = logits[~is_fact].log_softmax(-1)
            owner = self._owner[example[~is_fact]]
            if self._before is None:  # the first call is for all edits, unchanged
                self._before = now.new_empty((len(changes), now.shape[1]))
                self._before[owner] = now.detach()
            divergence = torch.nn.functional.kl_div(
                now, self._before[owner], reduction="none", log_target=True
            )
            essence = total.index_add(0, owner, divergence.sum(-1))
        return answer[open_edits], essence[open_edits]

    @contextmanager
    def _changed(self, batch: Batch, index: list[int], changes: Tensor) -> Iterator[None]:
        """The module's output at the lookups is that much different meanwhile."""
        places = torch.tensor(index, device=changes.device)
        rows = torch.arange(len(index), device=changes.device)
        cols, wanted = self._lookup[places], changes[self._owner[places]]

        def add(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            moved = hidden.index_put((rows, cols), wanted.to(hidden.dtype), accumulate=True)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handle = self._module.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()
