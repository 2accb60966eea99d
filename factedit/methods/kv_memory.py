"""Edit by a key-value memory: no weight moves; what the model is asked calls up what it is to answer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.forward import block_input, target_logits
from factedit.holding import holding
from factedit.memory import Memory, directions, distances
from factedit.methods.material import training_examples
from factedit.models import LanguageModel
from factedit.overlay import applied
from factedit.prompts import Example, batches, next_token_example
from factedit.task import Edited, EditingError, EditTask, change_metrics
from factedit.wording import training_prompts

HOLD = 0.9
"""How probable each token of an answer must be before its value is left alone."""

GROUP = 16
"""Edits whose values are sought in one batch; each is sought for itself, whatever the others are."""

STEP = 0.1
"""Adam's step size, in units of the state's root mean square."""

REACH = 0.2
"""The radius as a share of the distance to the nearest state that is to be left alone."""

UNMEASURED = 0.1
"""The radius where there is nothing to be left alone."""

SAME = 0.02
"""Directions nearer than this come from the same text: they differ by rounding alone."""


def remember(task: EditTask) -> Edited:
    """Give every edit that does not hold yet its keys and its value, beside the parent's memory.

    A key is the direction of the state that leaves the chosen block where the answer begins, for each
    of an edit's training prompts; the one value of an edit is a state that makes the blocks above give
    the new object and stop, found by gradient descent on it alone. A radius reaches a share of the way
    to the nearest state of an anchor's, a neighbour's or a ledger prompt, at any position, and no more
    than half the way to a key with another answer. What the parent remembers of the same prompts is
    forgotten.

    Source: Hartvigsen et al. 2023, "Aging with GRACE", section 2.2 and algorithm 1.

    Raises:
        EditingError: not one block, or the last one, above which nothing could read a value.
    """
    lm, block = task.lm, _one_block(task)
    edits = [*task.edits, *task.ledger]
    anchors = [*task.anchors[: task.plan.anchors.count], *(p for e in task.edits for p in e.neighbors)]
    search = _Search(task, block)
    with applied(lm, task.parent):
        examples, owner = training_examples(lm, edits, task.relations)
        failing = _failing(task, examples, owner)
        kept = [edit for place, edit in enumerate(edits) if place not in failing]
        new = search.memory(examples, owner, failing) if failing else None
        if new is not None:
            left_alone = _states(
                lm, [next_token_example(lm, p) for p in [*anchors, *_asked(task, kept)]], block
            )
            new = _bounded(new, left_alone, [edits[place].new_object for place in sorted(failing)])
    memory = _joined(Memory.of(task.parent), new)
    tensors = {**task.parent, **(memory.tensors() if memory else {})}
    with applied(lm, tensors):
        failing = _failing(task, examples, owner)
    return Edited(
        tensors=tensors,
        metrics={
            "steps": search.steps,
            "edits_holding": len(edits) - len(failing),
            "edits_total": len(edits),
            "keys": len(memory.keys) if memory else 0,
            "values": len(memory.values) if memory else 0,
            "median_radius": float(new.radii.median()) if new is not None else None,
            **change_metrics(lm, {}, None),
        },
        chosen={
            "method": task.method.name,
            "rule": task.plan.preset.rule,
            "blocks": [block],
            "parameters": "none",
            "norm": "none",
            "radius": None,
            "anchors": len(anchors),
            "examples": len(examples),
        },
    )


def _one_block(task: EditTask) -> int:
    if len(task.plan.blocks) > 1:
        raise EditingError(f"kv_memory remembers at one block; choose one of {task.plan.blocks}.")
    (block,) = task.plan.blocks
    if block == task.lm.n_blocks - 1:
        raise EditingError("Nothing above the last block could read a value; choose a lower block.")
    return block


def _failing(task: EditTask, examples: Sequence[Example], owner: Sequence[int]) -> set[int]:
    """The new edits that do not hold in all their training prompts, and the earlier ones that do not in
    their plainest: an earlier edit's lead-in sentences are others in each batch."""
    first = {place: i for i, place in reversed(list(enumerate(owner)))}
    judged = [i for i, place in enumerate(owner) if place < len(task.edits) or first[place] == i]
    held = holding(task.lm, [examples[i] for i in judged])
    return {owner[i] for i, good in zip(judged, held, strict=True) if not good}


def _asked(task: EditTask, edits: Sequence[Edit]) -> list[str]:
    return [prompt for edit in edits for prompt in training_prompts(edit, task.relations)]


# Values


class _Search:
    """Gradient descent on values, group by group, and how it goes."""

    def __init__(self, task: EditTask, block: int) -> None:
        self.task, self.lm, self.block = task, task.lm, block
        self.total = len(task.edits) + len(task.ledger)
        self.steps, self.holding = 0, 0

    def memory(self, examples: Sequence[Example], owner: Sequence[int], sought: Collection[int]) -> Memory:
        """Keys of the sought edits' examples and a value for each of the edits, with no radii yet."""
        self.holding = self.total - len(sought)
        examples = [example for example, place in zip(examples, owner, strict=True) if place in sought]
        owner = [place for place in owner if place in sought]
        states = _states(self.lm, examples, self.block, at_positions=True)
        places = sorted(set(owner))
        owners = torch.tensor([places.index(place) for place in owner])
        values = []
        for start in range(0, len(places), GROUP):
            mine = ((owners >= start) & (owners < start + GROUP)).nonzero().flatten().tolist()
            group = _Group([examples[i] for i in mine], owners[mine] - start, states[mine])
            values.append(self._values(group))
        return Memory(
            keys=directions(states).cpu(),
            owners=owners,
            radii=torch.full((len(examples),), UNMEASURED),
            blocks=torch.full((len(examples),), self.block),
            values=torch.cat(values).cpu(),
        )

    def _values(self, group: "_Group") -> Tensor:
        """One value for each of the group's edits, in the model's dtype, [E, d]."""
        dtype = self.lm.model.dtype
        facts = ExampleSet(self.lm, group.examples, group.owners.tolist(), self.block + 1)
        base = group.first_states().float()
        scale = base.square().mean(1, keepdim=True).sqrt()
        moved = torch.zeros_like(base, requires_grad=True)
        optimizer = torch.optim.Adam([moved], lr=STEP)
        settled = base.to(dtype, copy=True)
        active = list(range(len(base)))
        for step in range(self.task.method.max_steps + 1):
            index = [i for i, place in enumerate(facts.owner) if place in set(active)]
            batch, prefix = facts.batch(index)
            assert prefix is not None
            values = (base + scale * moved).to(dtype)
            at = torch.tensor([facts.examples[i].positions[0] for i in index], device=self.lm.device)
            rows = torch.arange(len(index), device=self.lm.device)
            owners = group.owners[index].to(self.lm.device)
            prefix = prefix.index_put((rows, at), values[owners])
            logits = target_logits(self.lm, batch, prefix=prefix, first_block=self.block + 1).float()
            losses = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
            failing = {facts.owner[index[row]] for row in batch.rows[(-losses).exp() < HOLD].tolist()}
            settled[active] = values.detach()[active]  # A value that holds is left as it is from now on.
            self.holding += len(active) - len(failing)
            active = sorted(failing)
            if not active or step == self.task.method.max_steps:
                break
            counts = torch.bincount(batch.rows, minlength=len(index))
            mine = torch.tensor([facts.owner[i] in failing for i in index], device=self.lm.device)
            loss = (losses / counts[batch.rows])[mine[batch.rows]].sum()
            (moved.grad,) = torch.autograd.grad(loss, [moved])
            optimizer.step()
            self.steps += 1
            self._report(float(loss.detach()) / int(mine.sum()))
        return settled

    def _report(self, loss: float) -> None:
        self.task.progress(
            {
                "phase": "editing",
                "step": self.steps,
                "max_steps": self.task.method.max_steps * -(-self.total // GROUP),
                "loss": round(loss, 4),
                "edits_holding": self.holding,
                "edits_total": self.total,
            }
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """Examples of a few edits, the edit each belongs to (from 0), and the states at their answers, [n, d]."""

    examples: list[Example]
    owners: Tensor
    states: Tensor

    def first_states(self) -> Tensor:
        """The state of each edit's plainest prompt, [E, d]."""
        owners = self.owners.tolist()
        return self.states[[owners.index(place) for place in range(max(owners) + 1)]]


# Keys and radii


@torch.no_grad()
def _states(
    lm: LanguageModel, examples: Sequence[Example], block: int, *, at_positions: bool = False
) -> Tensor:
    """What leaves `block`, before any memory is looked up: at each example's first target position in the
    examples' order, [n, d], or at every position, [tokens, d]."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    found: list[Tensor] = []
    places: list[int] = []
    # First of the block's hooks: the parent's own memory comes after it.
    handle = lm.blocks[block].register_forward_hook(note, prepend=True)
    try:
        for batch in batches(lm, examples, 64):
            block_input(lm, batch, block + 1)
            for row, place in enumerate(batch.index.tolist()):
                example = examples[place]
                states = seen[-1][row, : len(example.ids)]
                found.append(states[example.positions[0]][None] if at_positions else states)
                places.append(place)
            seen.clear()
    finally:
        handle.remove()
    if not found:
        return torch.empty((0, lm.model.config.get_text_config().hidden_size), device=lm.device)
    order = sorted(range(len(places)), key=places.__getitem__)
    return torch.cat([found[i] for i in order])


def _bounded(memory: Memory, left_alone: Tensor, answers: Sequence[str]) -> Memory:
    """The memory with its radii; `answers` are its values', in their order."""
    radii = memory.radii
    if len(left_alone):
        apart = distances(memory.keys, directions(left_alone).cpu())
        # The same text can't be told from the edit's own.
        radii = REACH * apart.masked_fill(apart < SAME, 2.0).min(1).values
    same = torch.tensor([[one == other for other in answers] for one in answers])
    return Memory(
        memory.keys,
        memory.owners,
        torch.minimum(radii, _half_way(memory, memory, same[memory.owners][:, memory.owners])),
        memory.blocks,
        memory.values,
    )


def _half_way(memory: Memory, other: Memory, same_answer: Tensor) -> Tensor:
    """Half the distance from each key to the nearest of the other's with another answer, [K]."""
    apart = distances(memory.keys, other.keys)
    elsewhere = memory.blocks[:, None] != other.blocks[None, :]
    return apart.masked_fill(same_answer | elsewhere | (apart < SAME), 4.0).min(1).values / 2


def _joined(old: Memory | None, new: Memory | None) -> Memory | None:
    """Both memories as one: what the old one says to the new one's prompts is forgotten."""
    if old is None or new is None:
        return new if old is None else old
    apart = distances(old.keys, new.keys)
    met = ((apart < SAME) & (old.blocks[:, None] == new.blocks[None, :])).any(1)
    old = old.only(~torch.isin(old.owners, old.owners[met]))
    if not len(old.keys):
        return new
    other = torch.zeros((len(old.keys), len(new.keys)), dtype=torch.bool)
    return Memory(
        keys=torch.cat([old.keys, new.keys]),
        owners=torch.cat([old.owners, new.owners + len(old.values)]),
        radii=torch.cat(
            [
                torch.minimum(old.radii, _half_way(old, new, other)),
                torch.minimum(new.radii, _half_way(new, old, other.T)),
            ]
        ),
        blocks=torch.cat([old.blocks, new.blocks]),
        values=torch.cat([old.values, new.values]),
    )
