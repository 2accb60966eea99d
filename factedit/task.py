"""What a method is given and what it yields: the one protocol of all editors (DESIGN.md, choices 1-3)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from factedit.blocks import asking_blocks, choose_blocks, lookup_blocks, reading_block
from factedit.curvature import Covariance
from factedit.facts import Edit
from factedit.gated_mlp import gated_mlp
from factedit.models import LanguageModel, iter_block_tensors
from factedit.presets import PRESETS, Preset, anchors_of, misfit
from factedit.relations import Relation
from factedit.running_text import RunningText
from factedit.specs import AnchorSpec, Blocks, ConstraintSpec, MethodSpec, Norm, ParameterSet


class EditingError(Exception):
    """A batch that can't be trained as asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit yields.

    Attributes:
        tensors: the overlay: absolute new values in the root's dtype, the parent's included.
        metrics: steps, edits holding, norms of the change, share of weights at the bound.
        chosen: blocks, parameters, constraint and radius that were used.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, Any]
    chosen: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """A method's choices for one model, with nothing left open.

    Attributes:
        names: the tensors that may change.
        radius: None without a constraint.
        looking_up: the lower blocks, ascending, with gated MLPs to which neurons may be added, each of which
            fires at an edit's subject (factedit.added_neurons); no constraint bounds them.
        reading: the block below, if any, whose neurons read the words of subjects' names for them.
        asking: the blocks, ascending, whose silent neurons read what is asked for those that answer.
    """

    preset: Preset
    blocks: list[int]
    parameters: ParameterSet
    names: list[str]
    anchors: AnchorSpec
    norm: Norm
    radius: float | None
    looking_up: list[int] = field(default_factory=list)
    reading: int | None = None
    asking: list[int] = field(default_factory=list)

    @property
    def answering(self) -> list[int]:
        """The blocks of `names`."""
        others = {*self.looking_up, self.reading, *self.asking}
        return [block for block in self.blocks if block not in others]

    @property
    def reads_texts(self) -> bool:
        """Whether the method makes use of running text (EditTask.texts)."""
        return bool(self.looking_up) or self.preset.rule == "projected_adam"

    @property
    def subject_blocks(self) -> list[int]:
        """The blocks below those, in which neurons know subjects and the words of their names."""
        return [block for block in self.blocks if block in {*self.looking_up, self.reading}]


def plan(lm: LanguageModel, method: MethodSpec, blocks: Blocks, constraint: ConstraintSpec) -> Plan:
    """Fill in what the caller left open.

    Raises:
        NoSuchBlock; EditingError: the blocks have no such tensors; no such constraint of this method.
    """
    preset = PRESETS[method.name]
    parameters = method.parameters or preset.parameters
    chosen, lower = choose_blocks(lm.n_blocks, blocks, preset.depth), []
    # Neurons that fire at one subject only fit in no small ball: who asks for one gets fine-tuning alone.
    unbounded = constraint.norm in (None, "none") and constraint.radius is None
    if preset.lookup_depth is not None and unbounded and parameters == "mlp" and lm.task == "causal":
        found = lookup_blocks(lm.n_blocks, blocks, preset.lookup_depth, preset.depth)
        lower = [block for block in found if gated_mlp(lm, block) is not None]
    upper = [block for block in chosen if block not in set(lower)]
    names = list(iter_block_tensors(lm, upper, parameters))
    if not names:
        raise EditingError(f"Blocks {chosen} have no {parameters} matrices to train.")
    if (problem := misfit(method, constraint)) is not None:
        raise EditingError(problem)
    norm: Norm = constraint.norm or preset.norm if preset.constrained else "none"
    radius = None if norm == "none" else constraint.radius or preset.radius[norm]
    reading = reading_block(lm.n_blocks, blocks, preset.reading_depth, lower)
    if reading is not None and gated_mlp(lm, reading) is None:
        reading = None
    asking = asking_blocks(blocks, lower, upper)
    return Plan(
        preset=preset,
        blocks=sorted({*lower, *upper, *asking, *([] if reading is None else [reading])}),
        parameters=parameters,
        names=names,
        anchors=anchors_of(method, norm),
        norm=norm,
        radius=radius,
        looking_up=lower,
        reading=reading,
        asking=asking,
    )


@dataclass(frozen=True)
class EditTask:
    """An edit to be made.

    Attributes:
        parent: the overlay to start from.
        edits: what is new; `ledger`: earlier edits still in force, to be kept.
        anchors: unmodified prompts, whose answers are to stay the root's.
        background: what enters the named matrices while the root reads unmodified facts
            (factedit.curvature); cached by the service.
        texts: in which no edited subject occurs.
        asked: questions of anybody (factedit.questions), and what enters matrices there; None: what an edit
            asks is told from what else it is told of alone.
    """

    lm: LanguageModel
    plan: Plan
    parent: Mapping[str, Tensor]
    edits: Sequence[Edit]
    ledger: Sequence[Edit]
    relations: Mapping[str, Relation]
    anchors: Sequence[str]
    method: MethodSpec
    seed: int
    progress: Callable[[dict[str, Any]], None]
    background: Callable[[Sequence[str]], Covariance]
    texts: RunningText
    asked: RunningText | None = None


class Editor(Protocol):
    """A method: deterministic for a seed on one device kind; the root is the same afterwards."""

    def __call__(self, task: EditTask) -> Edited:
        """Raises EditingError: the task can't be done by this method."""


def change_metrics(lm: LanguageModel, changed: Mapping[str, Tensor], radius: float | None) -> dict[str, Any]:
    """How far the tensors `changed` lie from the root's; `radius` of an l_inf ball, where there is one."""
    roots = {name: lm.tensors[name].data for name in changed}
    moved = {n: (changed[n].to(lm.device).double() - roots[n].double()).abs() for n in changed}
    total = sum(t.numel() for t in moved.values())
    at_bound = sum(int((t >= 0.95 * radius).sum()) for t in moved.values()) if radius else 0
    return {
        "changed_tensors": sorted(changed),
        "max_abs_change": max((float(t.max()) for t in moved.values()), default=0.0),
        "l2_norm": sum(float(t.square().sum()) for t in moved.values()) ** 0.5,
        "share_at_bound": at_bound / total if radius and total else None,
    }


def overlay_of(
    lm: LanguageModel, parent: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the overlay, what of `tensors` differs from the root): the parent's other tensors are kept."""
    changed = {n: t.cpu() for n, t in tensors.items() if not torch.equal(t, lm.tensors[n].data)}
    elsewhere = {n: t.cpu() for n, t in parent.items() if n not in tensors}
    return {**elsewhere, **changed}, changed
