"""What a fact's value should be: the change of a hidden vector, at the lookup, that makes the answer.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", equation 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from factedit.example_sets import ExampleSet
from factedit.methods.keys import Context, lookups, read_outputs, subject_end
from factedit.methods.value_objective import Objective, at_lookups
from factedit.models import LanguageModel
from factedit.prompts import next_token_example

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


Told = Callable[[int, list[float]], None]
"""Called with each step's number and every edit's loss."""


def seek_values(
    lm: LanguageModel,
    module: nn.Module,
    block: int,
    found: Sequence[Context],
    subjects: Sequence[str],
    search: Search,
    told: Told,
) -> Values:
    """The change of `module`'s output at each edit's lookup that makes its answer, for all edits at once.

    What is said of the subject itself, after "is a", is held (their section 3.1).

    Args:
        module: block `block`, or a matrix inside it.
        found: the edits' contexts, `edit` counted from 0; `subjects`: one an edit.
    """
    told_of = subjects if search.essence > 0 else ()
    said = [saying(lm, f"{subject} is a", subject, place) for place, subject in enumerate(told_of)]
    contexts = [*found, *said]
    examples = ExampleSet(lm, [c.example for c in contexts], [c.edit for c in contexts], block)
    objective = Objective(examples, found, said, search.at_once, at_lookups(module, contexts))
    length = _lengths(lm, module, block, found)
    start = length.new_zeros((len(length), lm.model.config.hidden_size))
    return seek(objective, start, length, search, told)


def saying(lm: LanguageModel, text: str, subject: str, edit: int) -> Context:
    """What is asked of a subject besides the fact: its next token is to stay."""
    return Context(edit, next_token_example(lm, text), subject_end(lm, text, subject), 0.0, bare=False)


def seek(
    objective: Objective,
    start: Tensor,
    length: Tensor,
    search: Search,
    told: Told,
    whose: Sequence[int] | None = None,
) -> Values:
    """The changes, at most `search.longest` times `length`, [n, 1], that make the answers.

    Args:
        start: the changes to begin with, [n, d] float32.
        whose: by change, the edit that it is one of; if not given, each edit has one, in order.
    """
    shares = (start / length).requires_grad_(True)
    adam = torch.optim.Adam([shares], lr=search.pace / shares.shape[1] ** 0.5)
    open_edits = list(range(len(objective.rounds)))
    of_edit = torch.tensor(range(len(start)) if whose is None else whose, device=start.device)
    losses = dict.fromkeys(open_edits, float("inf"))
    holds_for = dict.fromkeys(open_edits, 0)  # steps in a row that an edit's loss has been small
    step = 0
    while open_edits:
        answer, essence = objective(shares * length, open_edits, step)
        for edit, loss in zip(open_edits, answer.tolist(), strict=True):
            losses[edit] = loss
            holds_for[edit] = holds_for[edit] + 1 if loss <= search.enough else 0
        last = step >= search.steps
        done = {e for e in open_edits if last or holds_for[e] >= objective.rounds[e]}
        told(step, list(losses.values()))
        still = [n for n, edit in enumerate(open_edits) if edit not in done]
        open_edits = [open_edits[n] for n in still]
        if not still:
            break
        adam.zero_grad()
        (answer + search.essence * essence)[still].sum().backward()
        before = shares.detach().clone()
        adam.step()
        with torch.no_grad():
            sought = torch.isin(of_edit, torch.tensor(open_edits, device=of_edit.device))[:, None]
            shares.mul_((search.longest / shares.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1))
            shares.copy_(torch.where(sought, shares, before))
        step += 1
    return Values(shares.detach() * length, list(losses.values()), step)


def _lengths(lm: LanguageModel, module: nn.Module, block: int, found: Sequence[Context]) -> Tensor:
    """The usual length of the module's output at each edit's lookups, [n, 1].

    The median over its contexts: a prompt's very first token is many times longer than all others.
    """
    lengths = read_outputs(lookups(lm, found, block), module).norm(dim=1)
    owner = torch.tensor([c.edit for c in found], device=lengths.device)
    edits = range(int(owner.max()) + 1)
    return torch.stack([lengths[owner == edit].median() for edit in edits])[:, None]
