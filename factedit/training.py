"""The one trainer: projected steps on chosen tensors, with the facts to hold and the anchors to keep.

Source of the objective: Zhu et al. 2020, "Modifying Memories in Transformer Models", section 3:
minimise the loss on the modified facts with the weights in a ball around the root's. The anchors'
term, KL from the root's answers, stands for the unmodified facts of their FTA.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.constraints import Constraint, round_inside
from factedit.example_sets import ExampleSet
from factedit.holding import HOLDS_FROM, Anchors, summed_loss, wrong_rows
from factedit.models import LanguageModel
from factedit.objectives import Step, epoch_rounds, failing_rounds
from factedit.steps import StepRule


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How long and how hard to train.

    Attributes:
        batch_size: examples of facts per step; `anchor_batch`: anchors.
        repair: once all facts hold, so many steps more, as a share of those taken, are for the anchors
            alone; a fact that falls meanwhile is trained again.
    """

    max_steps: int
    anchor_weight: float
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
LOOKS = 5
"""Epochs between two such looks, where training does not go by them."""


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
        anchors: Anchors | None,
        progress: Callable[[Progress], None],
        objective: Objective = FAILING_FACTS,
    ) -> Trained:
        """Train until every fact holds in all its examples, or the epochs or steps are spent."""
        total = len(set(facts.owner))
        steps, epoch, holding, mean = 0, 0, 0, float("inf")
        failing: list[int] = []
        repairs: int | None = None  # anchors' steps that are left, once all facts have held
        with self._swapped_in():
            while True:
                spent = steps >= self.plan.max_steps or mean < objective.enough
                done = objective.epochs is not None and epoch >= objective.epochs
                if objective.epochs is None or done or spent or epoch % LOOKS == 0:
                    failing = self._failing(facts)
                    holding = total - len({facts.owner[i] for i in failing})
                    done = done or (objective.epochs is None and not failing)
                if done and anchors is not None and self.plan.repair > 0:
                    repairs = round(self.plan.repair * steps) if repairs is None else repairs
                    now = min(repairs, REPAIRS, self.plan.max_steps - steps)
                    if now > 0:
                        loss = self._repaired(anchors, now)
                        steps, repairs = steps + now, repairs - now
                        progress(Progress(step=steps, loss=loss, holding=holding, total=total))
                        continue
                if done or spent:
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

    def _anchors_backward(self, anchors: Anchors) -> float:
        if self.plan.anchor_weight == 0:
            return 0.0
        size = min(len(anchors.examples), self.plan.anchor_batch)
        index = torch.randperm(len(anchors.examples), generator=self._generator)[:size].tolist()
        weight, value = self.plan.anchor_weight / size, 0.0
        for part in anchors.examples.by_length(index, size):
            divergence = weight * anchors.summed_divergence(part)
            divergence.backward()
            value += float(divergence.detach())
        return value

    def _repaired(self, anchors: Anchors, steps: int) -> float:
        """So many steps on the anchors alone; the last one's divergence."""
        loss = 0.0
        for _ in range(steps):
            loss = self._anchors_backward(anchors)
            self._step()
        return loss

    def _answers_backward(self, examples: ExampleSet, index: list[int], of: int) -> float:
        """The part that some examples have in the loss of a batch `of` so many."""
        value = 0.0
        for part in examples.by_length(index, len(index)):
            batch, logits = examples.logits(part)
            loss = summed_loss(batch, logits, len(part)) / of
            for ahead in examples.lead(part, batch, logits).values():
                loss = loss + ahead / of
            loss.backward()
            value += float(loss.detach())
        return value

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
        """The examples that do not hold yet; one that holds no longer pulls at the weights."""
        failing: list[int] = []
        for index in facts.by_length(range(len(facts)), 128):
            batch, logits = facts.logits(index)
            bad_rows = wrong_rows(batch, logits, HOLDS_FROM)
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
