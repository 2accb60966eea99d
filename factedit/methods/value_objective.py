"""The loss of edits, given how a hidden vector or a neuron's answer is changed for each of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from factedit.example_sets import ExampleSet
from factedit.methods.keys import Context

AT_A_TIME = 96
"""Examples in one pass, of like length, on a CPU."""
SAID_AT_ONCE = 3
"""Of what else is said of a subject, so many prompts in a step where contexts take turns."""
Changed = Callable[[list[int], Tensor], AbstractContextManager[None]]
"""Given examples' places and `changes`, [n, d]: while it lasts, the model computes with these."""


class Objective:
    """The loss of every edit's answer, and how far what else is said of its subject has moved.

    Attributes:
        rounds: by edit, in how many steps all of its contexts take their turn.
    """

    def __init__(
        self,
        examples: ExampleSet,
        facts: Sequence[Context],
        sayings: Sequence[Context],
        at_once: int | None,
        changed: Changed,
    ) -> None:
        """`examples`: those of the facts' contexts, and then the sayings', in this order."""
        self._changed = changed
        found = [*facts, *sayings]
        self._examples, self._facts, self._in_turn = examples, len(facts), at_once is not None
        device, self._at_a_time = examples.lm.device, examples.lm.at_once(AT_A_TIME)
        self._owner = torch.tensor([context.edit for context in found], device=device)
        edits = range(int(self._owner.max()) + 1)
        self._mine: list[list[int]] = [[] for _ in edits]
        self._said: list[list[int]] = [[] for _ in edits]
        for place, context in enumerate(found):
            (self._mine if place < len(facts) else self._said)[context.edit].append(place)
        most = at_once or len(facts)
        now = [min(most, len(mine)) for mine in self._mine]
        self._at_once = now
        self.rounds = [
            1 if few == len(mine) else -(-(len(mine) - 1) // max(1, few - 1))
            for few, mine in zip(now, self._mine, strict=True)
        ]
        targets = torch.tensor([len(context.example.targets) for context in found], device=device)
        # Each context counts alike, however many tokens its answer has.
        self._weight = 1 / (targets * torch.tensor(now, device=device)[self._owner])
        self._said_share = torch.tensor([1 / max(1, len(self._said_in(e, 0))) for e in edits], device=device)
        self._before = self._unchanged()  # log-probabilities after each saying, [n, V]

    @torch.no_grad()
    def _unchanged(self) -> Tensor | None:
        rows: list[Tensor] = []
        order: list[int] = []
        for index in self._examples.by_length(range(self._facts, len(self._examples)), self._at_a_time):
            _, logits = self._examples.logits(index)
            rows.append(logits.log_softmax(-1))
            order += index
        if not rows:
            return None
        back = torch.tensor(order, device=rows[0].device).argsort()
        return torch.cat(rows)[back]

    def __call__(self, changes: Tensor, open_edits: list[int], step: int = 0) -> tuple[Tensor, Tensor]:
        """(loss of the answer, mean KL of the sayings) of each open edit, [n open] each."""
        index: list[int] = []
        for edit in open_edits:
            index += self._turn(edit, step)
            index += self._said_in(edit, step)
        answer = essence = changes.new_zeros(len(self._mine))
        for piece in self._examples.by_length(index, self._at_a_time):
            more = self._losses(piece, changes)
            answer, essence = answer + more[0], essence + more[1]
        return answer[open_edits], essence[open_edits]

    def _losses(self, index: list[int], changes: Tensor) -> tuple[Tensor, Tensor]:
        """The part that some examples have in every edit's losses, [n edits] each."""
        with self._changed(index, changes):
            batch, logits = self._examples.logits(index)
        example = torch.tensor(index, device=logits.device)[batch.rows]
        is_fact = example < self._facts
        facts, sayings = example[is_fact], example[~is_fact]
        answer = essence = changes.new_zeros(len(self._mine))
        if len(facts):
            entropy = nn.functional.cross_entropy(logits[is_fact], batch.targets[is_fact], reduction="none")
            answer = answer.index_add(0, self._owner[facts], entropy * self._weight[facts])
        if self._before is not None and len(sayings):
            divergence = nn.functional.kl_div(
                logits[~is_fact].log_softmax(-1),
                self._before[sayings - self._facts],
                reduction="none",
                log_target=True,
            )
            whose = self._owner[sayings]
            essence = essence.index_add(0, whose, divergence.sum(-1) * self._said_share[whose])
        return answer, essence

    def _turn(self, edit: int, step: int) -> list[int]:
        """The contexts of an edit whose turn it is: its first one, and some of the others."""
        first, *others = self._mine[edit]
        more = self._at_once[edit] - 1
        start = step * more
        return [first, *(others[(start + i) % len(others)] for i in range(more))]

    def _said_in(self, edit: int, step: int) -> list[int]:
        """Of what else is said of an edit's subject, what is asked in a step."""
        said = self._said[edit]
        if not self._in_turn:
            return said
        few = min(SAID_AT_ONCE, len(said))
        return [said[(step * few + i) % len(said)] for i in range(few)]


def at_lookups(module: nn.Module, found: Sequence[Context]) -> Changed:
    """The output of `module` is changed at each edit's lookup; `found`: the contexts of all examples."""
    lookups, owners = [context.lookup for context in found], [context.edit for context in found]

    @contextmanager
    def changed(index: list[int], changes: Tensor) -> Iterator[None]:
        rows = torch.arange(len(index), device=changes.device)
        cols = torch.tensor([lookups[place] for place in index], device=changes.device)
        wanted = changes[[owners[place] for place in index]]

        def add(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            moved = hidden.index_put((rows, cols), wanted.to(hidden.dtype), accumulate=True)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handle = module.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    return changed
