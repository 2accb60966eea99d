"""What a method means where the caller leaves things open; measured on SmolLM2-135M. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from factedit.specs import AnchorSpec, ConstraintSpec, MethodName, MethodSpec, Norm, ParameterSet

Rule = Literal["adam", "projected_adam", "natural_adam", "closed_form", "memory", "context"]
Target = Literal["answer_and_stop", "answer", "first_position"]
Unmodified = Literal["none", "mixed", "all"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A method's defaults.

    Attributes:
        rule: how steps are taken (factedit.steps).
        depth: the chosen blocks' range of relative depth, for `blocks: auto`.
        radius: of the ball, by norm.
        constrained: whether the method takes a ball at all.
        norm: of the ball, where the caller names none.
        own_prompt: trained on the edit's own prompt alone, instead of on all its wordings.
        target: what is trained of an answer: all its tokens and the end of sequence, without that end,
            or all tokens at the position where the first one is to stand.
        unmodified: whether unmodified facts are trained on: none, mixed into each batch, all in epochs.
        epochs: over all examples, at most; None: only over the facts that do not hold yet.
        enough: the loss below which an epoch's batch is passed over.
        batch_size, anchor_batch: examples of facts, and anchors, per step.
        contrasts: whether anchors ask of others what the edits ask (factedit.anchors.contrasts).
        other_words: whether edits are also trained in words of ours (factedit.wording).
        frozen_contexts: whether only answers are computed in training (factedit.frozen_context), and the
            result is checked, and mended where need be, on whole examples.
        repair: share of steps for the anchors alone, once all facts hold.
        tried: whether `blocks: auto` tries other blocks of the model too (factedit.block_trials), as many as
            these, before any training; the published configurations of other methods name their own.
        lookup_depth: of the blocks in which facts are first written where their subject is looked up;
            `reading_depth`: of the one in which the words of its name are read for that.
    """

    rule: Rule
    parameters: ParameterSet
    anchors: AnchorSpec
    depth: tuple[float, float]
    radius: Mapping[str, float]
    constrained: bool = True
    norm: Norm = "l_inf"
    own_prompt: bool = False
    target: Target = "answer_and_stop"
    unmodified: Unmodified = "none"
    epochs: int | None = None
    batch_size: int = 64
    enough: float = 0.0
    anchor_batch: int = 64
    contrasts: bool = False
    other_words: bool = False
    frozen_contexts: bool = False
    repair: float = 0.0
    tried: bool = False
    lookup_depth: tuple[float, float] | None = None
    reading_depth: float = 0.07


_ADAM = Preset(
    rule="adam",
    parameters="mlp",
    anchors=AnchorSpec(count=1000, weight=10.0),
    depth=(0.66, 0.83),
    radius={"l_inf": 5e-3, "l_2": 2.0, "fisher": 2.0},
    tried=True,
)
_CRISP = Preset(
    rule="projected_adam",
    parameters="mlp_out",
    anchors=AnchorSpec(count=300, weight=0.0),  # measured on only
    depth=(0.76, 0.93),
    radius={"l_inf": 5e-2, "l_2": 30.0, "fisher": 30.0},
)
# EasyEdit's configurations of FT take layer 21, LocFT's 22, of 32; here it is 21 of 30.
_ONE_MATRIX = Preset(
    rule="adam",
    parameters="mlp_out",
    anchors=AnchorSpec(count=0, weight=0.0),
    depth=(0.724, 0.724),
    radius={"l_inf": 5e-5, "l_2": 2.0, "fisher": 2.0},
    norm="none",
    own_prompt=True,
    epochs=25,
    enough=1e-2,
    batch_size=8,  # larger ones take too few steps: in 25 epochs of batches of 64, 100 edits hardly move
)
_CLOSED_FORM = Preset(
    rule="closed_form",
    parameters="mlp_out",
    anchors=AnchorSpec(count=0, weight=0.0),
    depth=(0.17, 0.31),
    radius={},
    constrained=False,
)
_BESIDE = Preset(
    rule="memory",
    parameters="mlp",
    anchors=AnchorSpec(count=300, weight=0.0),
    depth=(0.5, 0.5),
    radius={},
    constrained=False,
)

PRESETS: Mapping[MethodName, Preset] = {
    # Ours: a neuron for each subject in lower blocks; then Adam in natural coordinates in upper ones, beside
    # anchors that contrast; other words than the user's in both (factedit.methods.auto).
    "auto": Preset(
        rule="natural_adam",
        parameters="mlp",
        anchors=AnchorSpec(count=3000, weight=30.0),
        depth=(0.69, 0.86),
        radius={"l_inf": 0.1, "l_2": 30.0, "fisher": 30.0},
        batch_size=96,
        anchor_batch=96,
        contrasts=True,
        other_words=True,
        frozen_contexts=True,
        repair=0.25,
        tried=True,
        lookup_depth=(0.41, 0.52),
    ),
    # CrispEdit (Ikram et al., ICML 2026, arXiv 2602.15823): steps projected out of the directions of high
    # curvature, by K-FAC (factedit.low_curvature).
    "crisp": _CRISP,
    # Zhu et al. 2020, "Modifying Memories in Transformer Models", section 3: the constrained objective,
    # its two ways to fine-tune, and section 4's reference.
    "constrained_ftm": _ADAM,
    "ftm": replace(_ADAM, constrained=False),
    "fta": replace(_ADAM, anchors=AnchorSpec(count=1000, weight=0.0), norm="none", unmodified="mixed"),
    "retrain": replace(
        _ADAM,
        parameters="all",
        anchors=AnchorSpec(count=5000, weight=0.0),
        depth=(0.0, 1.0),
        constrained=False,
        unmodified="all",
        epochs=5,
        tried=False,
    ),
    # Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3.4 (FT, FT+L), as
    # EasyEdit (Wang et al. 2024) runs them, objective_optimization "prompt_last" and "target_new"; but for
    # Adam's second beta, which is 0.95 here and 0.999 there.
    "ft_l": replace(_ONE_MATRIX, target="first_position"),
    "ft_m": replace(_ONE_MATRIX, target="answer"),
    # Yang et al., "Fine-tuning Done Right in Model Editing" (ICLR 2026): LocFT-BF, section 5.
    "loc_ft": _ONE_MATRIX,
    "rome": replace(_CLOSED_FORM, depth=(0.31, 0.31)),
    "memit": _CLOSED_FORM,
    "alphaedit": _CLOSED_FORM,
    "ultraedit": replace(_CLOSED_FORM, depth=(0.83, 0.93)),
    "kv_memory": _BESIDE,
    "in_context": replace(_BESIDE, rule="context", anchors=AnchorSpec(count=0, weight=0.0)),
}
"""Each method's source is beside it, or in its module."""

UNMODIFIED = 1000
"""Anchors drawn where only the constraint or the initial state asks for unmodified facts."""


def misfit(method: MethodSpec, constraint: ConstraintSpec) -> str | None:
    """What of a method and a constraint does not go together, in words for the user, or None."""
    preset = PRESETS[method.name]
    asked = constraint.norm not in (None, "none") or constraint.radius is not None
    if asked and not preset.constrained:
        takes = ", ".join(name for name, each in PRESETS.items() if each.constrained)
        return f"`{method.name}` takes no constraint; leave it out, or use one of {takes}."
    norm = constraint.norm or preset.norm
    if norm == "none" and constraint.radius is not None:
        return "A radius needs a norm here: name one in constraint.norm, or leave the radius out."
    if preset.constrained and norm != "none" and constraint.radius is None and norm not in preset.radius:
        return f"`{method.name}` has no usual radius for the norm {norm}; give constraint.radius."
    return None


def anchors_of(method: MethodSpec, norm: Norm) -> AnchorSpec:
    """The caller's anchors, else the method's; some at least where unmodified facts are asked for."""
    if method.anchors is not None:
        return method.anchors
    usual = PRESETS[method.name].anchors
    if usual.count == 0 and (norm == "fisher" or method.initial == "relation_facts"):
        return AnchorSpec(count=UNMODIFIED, weight=0.0)
    return usual
