"""The one trainer: projected steps on chosen tensors, with the facts to hold and the anchors to keep.

Source of the objective: Zhu et al. 2020, "Modifying Memories in Transformer Models", section 3:
minimise the loss on the modified facts with the weights in a ball around the root's. The anchors'
term, KL from the root's answers, stands for the unmodified facts of their FTA.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from factedit.constraints import Constraint, round_inside
from factedit.cues import HeardAt, Kept, batch_of
from factedit.erasing import Forgotten, lead
from factedit.forward import block_input, target_logits
from factedit.models import LanguageModel
from factedit.objectives import Step, epoch_rounds, failing_rounds
from factedit.prompts import Batch, Example, batches, collate
from factedit.spilling import Spilling
from factedit.steps import StepRule

PADDED, A_PASS = 1.25, 32
"""A pass may compute so many times the tokens there are, and so many more: about what another pass costs."""


class ExampleSet:
    """Examples with what enters the first chosen block cached, so that a step starts there.

    Attributes:
        owner: the fact that each example belongs to.
        forgotten: what is to be forgotten, by example.
    """

    def __init__(
        self,
        lm: LanguageModel,
        examples: Sequence[Example],
        owner: Sequence[int],
        first_block: int,
        forgotten: Mapping[int, Forgotten] | None = None,
    ) -> None:
        self.forgotten = forgotten or {}
        self.lm, self.examples, self.owner, self.first_block = lm, list(examples), list(owner), first_block
        self._prefix = Spilling(lm.room)
        self._fired: dict[int, Kept] = {}  # by example, what fires in these blocks
        if first_block > 0:
            for batch in batches(lm, self.examples, lm.at_once(64)):
                hidden = block_input(lm, batch, first_block)
                heard = HeardAt(lm.cues)
                for row, place in enumerate(batch.index.tolist()):
                    length = len(self.examples[place].ids)
                    self._prefix.update({place: hidden[row, :length].clone()})
                    self._fired[place] = heard.kept(row, range(length), first_block)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, index: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """A batch of some examples and its cached prefix, [B, L, d]."""
        batch = collate(self.lm, self.examples, index)
        if not self._prefix:
            return batch, None
        prefix = torch.nn.utils.rnn.pad_sequence([self._prefix[i] for i in index], batch_first=True)
        _, fired = batch_of([self._fired[i] for i in index], prefix.shape[1], self.lm.cues)
        return replace(batch, fired=fired), prefix

    def logits(self, index: Sequence[int]) -> tuple[Batch, Tensor]:
        """Logits at the target positions of some examples, [N, V] float32."""
        batch, prefix = self.batch(index)
        logits = target_logits(self.lm, batch, prefix=prefix, first_block=self.first_block)
        return batch, logits.float()

    def lead(self, index: Sequence[int], batch: Batch, logits: Tensor) -> dict[int, Tensor]:
        """By row of a batch of some examples, how far what is to be forgotten still is ahead."""
        wanted = {row: self.forgotten[i] for row, i in enumerate(index) if i in self.forgotten}
        return lead(logits, batch.rows, wanted)

    def by_length(self, index: Sequence[int], size: int) -> Iterator[list[int]]:
        """Pieces of at most `size`, of like length: little of a piece is padding."""
        piece: list[int] = []
        tokens = 0
        for place in sorted(index, key=self.length):
            length = self.length(place)
            padded, real = (len(piece) + 1) * length, tokens + length
            if len(piece) == size or padded > PADDED * real + A_PASS:
                yield piece
                piece, real = [], length
            piece.append(place)
            tokens = real
        if piece:
            yield piece

    def length(self, place: int) -> int:
        """How many tokens of an example are computed."""
        return len(self.examples[place].ids)


@dataclass(frozen=True, slots=True)
class Anchors:
    """Unmodified prompts, and the root's log-probabilities of their next token, [n, V]."""

    examples: ExampleSet
    root_answers: Tensor

    def divergence(self, index: Sequence[int]) -> Tensor:
        """KL(root || edited) at the answer positions of some anchors, averaged."""
        batch, logits = self.examples.logits(index)
        wanted = self.root_answers[batch.index.to(self.root_answers.device)].float()
        return torch.nn.functional.kl_div(
            logits.log_softmax(-1), wanted, reduction="batchmean", log_target=True
        )


@torch.no_grad()
def next_token_log_probabilities(lm: LanguageModel, examples: Sequence[Example]) -> Tensor:
    """What the model now answers at one position an example: log-probabilities, [n, V], in its dtype."""
    rows: Tensor | None = None
    for batch in batches(lm, examples, 128):
        logits = target_logits(lm, batch).float()
        if rows is None:
            rows = torch.empty((len(examples), logits.shape[-1]), dtype=lm.model.dtype, device=logits.device)
        rows[batch.index.to(rows.device)] = logits.log_softmax(-1).to(rows.dtype)
    assert rows is not None
    return rows


@torch.no_grad()
def holding(lm: LanguageModel, examples: Sequence[Example], probability: float = 0.5) -> list[bool]:
    """Whether each example's targets are all the most probable tokens, and at least this probable."""
    held = [True] * len(examples)
    for batch in batches(lm, examples, lm.at_once(64)):
        logits = target_logits(lm, batch).float()
        chosen = logits.softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)
        for row in set(batch.rows[(logits.argmax(-1) != batch.targets) | (chosen < probability)].tolist()):
            held[int(batch.index[row])] = False
    return held


def mean_loss(examples: ExampleSet) -> Tensor:
    """The cross-entropy of the examples' targets, averaged over each example's, nats; a scalar."""
    index = range(len(examples))
    return _summed(*examples.logits(index), len(index)) / len(index)


def _summed(batch: Batch, logits: Tensor, examples: int) -> Tensor:
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    # Averaged over each example's target tokens first: a long object counts no more than a short one.
    counts = torch.bincount(batch.rows, minlength=examples)
    return (losses / counts[batch.rows]).sum()


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How long and how hard to train.

    Attributes:
        hold_probability: a fact holds when each of its target tokens is the most probable one and
            at least this probable; a fact that holds no longer pulls at the weights.
        batch_size: examples of facts per step; `anchor_batch`: anchors.
        repair: once all facts hold, so many steps more, as a share of those taken, are for the anchors
            alone; a fact that falls meanwhile is trained again.
    """

    max_steps: int
    anchor_weight: float
    hold_probability: float = 0.5
    batch_size: int = 64
    anchor_batch: int = 64
    repair: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Objective:
    """What is trained on beside the facts that are to hold.

    Attributes:
        wording: what stands for the facts in the loss, one example for each; None: they themselves.
        unmodified: facts to be trained on as they are; `share` of each batch, or all in each epoch.
        epochs: over all examples, at most; None: over the failing facts only, until none fails.
        enough: in epochs, a batch whose loss is below is passed over, and when their mean is, training ends.
    """

    wording: ExampleSet | None = None
    unmodified: ExampleSet | None = None
    share: float = 0.0
    epochs: int | None = None
    enough: float = 0.0


FAILING_FACTS = Objective()
REPAIRS = 8
"""Anchors' steps between two looks at whether the facts still hold."""


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    loss: float
    holding: int
    total: int


@dataclass(frozen=True, slots=True)
class Trained:
    """The new tensors in the root's dtype, inside the constraint, and how training went."""

    tensors: dict[str, Tensor]
    steps: int
    holding: int
    total: int


class Trainer:
    """Moves the tensors `names` of a model until the facts hold; the model's own storage stays as it is."""

    def __init__(
        self,
        lm: LanguageModel,
        names: Sequence[str],
        start: dict[str, Tensor],
        constraint: Constraint,
        rule: StepRule,
        plan: TrainingPlan,
    ) -> None:
        self.lm, self.names, self.plan = lm, list(names), plan
        self.constraint, self.rule = constraint, rule
        self.roots = {name: lm.tensors[name].data for name in names}
        self._roots32 = {name: root.float() for name, root in self.roots.items()}
        self.masters = {
            name: start.get(name, self.roots[name]).to(lm.device).float().clone() for name in names
        }
        self._generator = torch.Generator().manual_seed(plan.seed)

    def train(
        self,
        facts: ExampleSet,
        anchors: "Anchors | None",
        progress: Callable[[Progress], None],
        objective: Objective = FAILING_FACTS,
    ) -> Trained:
        """Train until every fact holds in all its examples, or the epochs or steps are spent."""
        total = len(set(facts.owner))
        steps, epoch, mean = 0, 0, float("inf")
        repairs: int | None = None  # anchors' steps that are left, once all facts have held
        with self._swapped_in():
            while True:
                failing = self._failing(facts)
                holding = total - len({facts.owner[i] for i in failing})
                done = not failing if objective.epochs is None else epoch >= objective.epochs
                if done and anchors is not None and self.plan.repair > 0:
                    repairs = round(self.plan.repair * steps) if repairs is None else repairs
                    now = min(repairs, REPAIRS, self.plan.max_steps - steps)
                    if now > 0:
                        loss = self._repaired(anchors, now)
                        steps, repairs = steps + now, repairs - now
                        progress(Progress(step=steps, loss=loss, holding=holding, total=total))
                        continue
                if done or steps >= self.plan.max_steps or mean < objective.enough:
                    break
                losses: list[float] = []
                for step in self._rounds(facts, failing, objective):
                    if steps >= self.plan.max_steps:
                        break
                    loss = self._backward(facts, step, objective)
                    if anchors is not None:
                        loss += self._anchors_backward(anchors)
                    losses.append(loss)
                    if loss < objective.enough:
                        self._pass_over()
                        continue
                    self._step()
                    steps += 1
                    progress(Progress(step=steps, loss=loss, holding=holding, total=total))
                epoch, mean = epoch + 1, sum(losses) / len(losses)
            tensors = round_inside(self.masters, self.roots, self.constraint)
        return Trained(tensors=tensors, steps=steps, holding=holding, total=total)

    # One step

    def _backward(self, facts: ExampleSet, step: Step, objective: Objective) -> float:
        chosen, beside = step
        value = 0.0
        for examples, index in ((objective.wording or facts, chosen), (objective.unmodified, beside)):
            if examples is not None and index:
                value += self._answers_backward(examples, index, len(chosen) + len(beside))
        return value

    def _anchors_backward(self, anchors: "Anchors") -> float:
        if self.plan.anchor_weight == 0:
            return 0.0
        size = min(len(anchors.examples), self.plan.anchor_batch)
        index = torch.randperm(len(anchors.examples), generator=self._generator)[:size].tolist()
        divergence = self.plan.anchor_weight * anchors.divergence(index)
        divergence.backward()
        return float(divergence.detach())

    def _repaired(self, anchors: "Anchors", steps: int) -> float:
        """So many steps on the anchors alone; the last one's divergence."""
        loss = 0.0
        for _ in range(steps):
            loss = self._anchors_backward(anchors)
            self._step()
        return loss

    def _answers_backward(self, examples: ExampleSet, index: list[int], of: int) -> float:
        """The part that some examples have in the loss of a batch `of` so many."""
        batch, logits = examples.logits(index)
        loss = _summed(batch, logits, len(index)) / of
        for ahead in examples.lead(index, batch, logits).values():
            loss = loss + ahead / of
        loss.backward()
        return float(loss.detach())

    def _pass_over(self) -> None:
        for name in self.names:
            self.lm.tensors[name].grad = None

    def _step(self) -> None:
        gradients: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            parameter = self.lm.tensors[name]
            found = parameter.grad
            gradients[name] = torch.zeros_like(master) if found is None else found.float()
            parameter.grad = None
        with torch.no_grad():
            self.rule(self.masters, gradients)
            self.constraint.project(self.masters, self._roots32)
            for name, master in self.masters.items():
                # The forward pass runs on the rounded weights: what is trained is what is served.
                self.lm.tensors[name].data.copy_(master)

    # What holds

    @torch.no_grad()
    def _failing(self, facts: ExampleSet) -> list[int]:
        failing: list[int] = []
        for index in facts.by_length(range(len(facts)), 128):
            batch, logits = facts.logits(index)
            probability = logits.softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)
            good = (logits.argmax(-1) == batch.targets) & (probability >= self.plan.hold_probability)
            bad_rows = set(batch.rows[~good].tolist())
            bad_rows |= {row for row, ahead in facts.lead(index, batch, logits).items() if ahead > 0}
            failing += [index[row] for row in sorted(bad_rows)]
        return sorted(failing)

    def _rounds(self, facts: ExampleSet, failing: list[int], objective: Objective) -> Iterator[Step]:
        unmodified = 0 if objective.unmodified is None else len(objective.unmodified)
        size = self.plan.batch_size
        if objective.epochs is None:
            return failing_rounds(failing, unmodified, objective.share, size, self._generator)
        return epoch_rounds(len(facts), unmodified, size, self._generator)

    @contextmanager
    def _swapped_in(self) -> Iterator[None]:
        """The model computes with copies of the chosen tensors, which may be trained, meanwhile."""
        try:
            for name, master in self.masters.items():
                self.lm.tensors[name].data = master.to(self.roots[name].dtype).clone()
                self.lm.tensors[name].requires_grad_(True)
            yield
        finally:
            for name, root in self.roots.items():
                self.lm.tensors[name].data = root
                self.lm.tensors[name].grad = None
                self.lm.tensors[name].requires_grad_(False)
