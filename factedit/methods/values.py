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
        essence: weight of the KL that holds what is said of the subject besides the fact, in nats.
        enough: an edit is left alone once its loss is below this.
        at_once: contexts of each edit in a step, its first one and others in turn; None: all of them.
    """

    steps: int
    pace: float
    longest: float
    essence: float = 0.0625
    enough: float = 0.05
    at_once: int | None = None


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
    sayings: Sequence[Sequence[str]] | None = None,
) -> Values:
    """The change of `module`'s output at each edit's lookup that makes its answer, for all edits at once.

    Args:
        module: block `block`, or a matrix inside it.
        found: the edits' contexts, `edit` counted from 0; `subjects`: one an edit.
        told: called with each step's number and every edit's loss.
        sayings: of each subject, what else is asked of it, whose next token is held: ROME's "is a" if None.
    """
    if sayings is None:
        sayings = [[f"{subject} is a"] for subject in subjects]
    objective = _Objective(lm, module, block, found, subjects, sayings, search)
    length = _lengths(lm, module, block, found)
    shares = length.new_zeros((len(subjects), lm.model.config.hidden_size), requires_grad=True)
    adam = torch.optim.Adam([shares], lr=search.pace / shares.shape[1] ** 0.5)
    settled = torch.zeros_like(shares.data)
    losses = [float("inf")] * len(subjects)
    holds_for = [0] * len(subjects)  # steps in a row that an edit's loss has been small
    open_edits = list(range(len(subjects)))
    step = 0
    while True:
        answer, essence = objective(shares * length, open_edits, step)
        for edit, loss in zip(open_edits, answer.tolist(), strict=True):
            losses[edit] = loss
            holds_for[edit] = holds_for[edit] + 1 if loss <= search.enough else 0
        last = step >= search.steps
        done = [e for e in open_edits if last or holds_for[e] >= objective.rounds[e]]
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


def _lengths(lm: LanguageModel, module: nn.Module, block: int, found: Sequence[Context]) -> Tensor:
    """The usual length of the module's output at each edit's lookups, [n, 1].

    The median over its contexts: a prompt's very first token is many times longer than all others.
    """
    lengths = read_outputs(lookups(lm, found, block), module).norm(dim=1)
    owner = torch.tensor([c.edit for c in found], device=lengths.device)
    edits = range(int(owner.max()) + 1)
    return torch.stack([lengths[owner == edit].median() for edit in edits])[:, None]


class _Objective:
    """The loss of every edit, given the changes of its hidden vector.

    Attributes:
        rounds: by edit, in how many steps all of its contexts take their turn.
    """

    def __init__(
        self,
        lm: LanguageModel,
        module: nn.Module,
        block: int,
        found: Sequence[Context],
        subjects: Sequence[str],
        sayings: Sequence[Sequence[str]],
        search: Search,
    ) -> None:
        self._lm, self._module = lm, module
        said = [(i, text) for i, own in enumerate(sayings) for text in own] if search.essence > 0 else []
        examples = [c.example for c in found] + [next_token_example(lm, text) for _, text in said]
        owner = [c.edit for c in found] + [i for i, _ in said]
        self._examples = ExampleSet(lm, examples, owner, block)
        self._owner = torch.tensor(owner, device=lm.device)
        ends = [subject_end(lm, text, subjects[i]) for i, text in said]
        self._lookup = torch.tensor([c.lookup for c in found] + ends, device=lm.device)
        self._mine: list[list[int]] = [[] for _ in subjects]
        for place, context in enumerate(found):
            self._mine[context.edit].append(place)
        most = search.at_once or len(found)
        self._at_once = [min(most, len(mine)) for mine in self._mine]
        self.rounds = [
            1 if now == len(mine) else -(-(len(mine) - 1) // max(1, now - 1))
            for now, mine in zip(self._at_once, self._mine, strict=True)
        ]
        targets = torch.tensor([len(e.targets) for e in examples], device=lm.device)
        # Each context counts alike, however many tokens its answer has.
        self._weight = 1 / (targets * torch.tensor(self._at_once, device=lm.device)[self._owner])
        self._facts = len(found)
        self._said: list[list[int]] = [[] for _ in subjects]
        for place, (subject, _) in enumerate(said, len(found)):
            self._said[subject].append(place)
        self._in_turn = search.at_once is not None
        self._before = self._unchanged()  # log-probabilities after each saying, [n, V]

    @torch.no_grad()
    def _unchanged(self) -> Tensor | None:
        rows: list[Tensor] = []
        for start in range(self._facts, len(self._examples), 2 * GROUP):
            index = range(start, min(start + 2 * GROUP, len(self._examples)))
            _, logits = self._examples.logits(index)
            rows.append(logits.log_softmax(-1))
        return torch.cat(rows) if rows else None

    def __call__(self, changes: Tensor, open_edits: list[int], step: int = 0) -> tuple[Tensor, Tensor]:
        """(loss of the answer, KL of the saying) of each open edit, [n open] each."""
        index = [place for edit in open_edits for place in self._turn(edit, step)]
        for said in (self._said[edit] for edit in open_edits):
            index += [said[step % len(said)]] if said and self._in_turn else said
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
        if self._before is not None and not bool(is_fact.all()):
            sayings = example[~is_fact]
            divergence = torch.nn.functional.kl_div(
                logits[~is_fact].log_softmax(-1),
                self._before[sayings - self._facts],
                reduction="none",
                log_target=True,
            )
            essence = total.index_add(0, self._owner[sayings], divergence.sum(-1))
        return answer[open_edits], essence[open_edits]

    def _turn(self, edit: int, step: int) -> list[int]:
        """The contexts of an edit whose turn it is: its first one, and some of the others."""
        first, *others = self._mine[edit]
        more = self._at_once[edit] - 1
        start = step * more
        return [first, *(others[(start + i) % len(others)] for i in range(more))]

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
