"""What a method means where the caller leaves things open; measured on SmolLM2-135M. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from factedit.specs import AnchorSpec, MethodName, ParameterSet

Rule = Literal["adam", "natural", "closed_form", "memory", "context"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A method's defaults.

    Attributes:
        rule: how steps are taken (factedit.steps).
        depth: the chosen blocks' range of relative depth, for `blocks: auto`.
        radius: of the ball, by norm.
    """

    rule: Rule
    parameters: ParameterSet
    anchors: AnchorSpec
    depth: tuple[float, float]
    radius: Mapping[str, float]
    constrained: bool = True


_ADAM = Preset(
    rule="adam",
    parameters="mlp",
    anchors=AnchorSpec(count=1000, weight=10.0),
    depth=(0.66, 0.83),
    radius={"l_inf": 5e-3, "l_2": 2.0},
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
    "auto": Preset(
        rule="natural",
        parameters="mlp_out",
        anchors=AnchorSpec(count=0, weight=0.0),
        depth=(0.76, 0.93),
        radius={"l_inf": 5e-2, "l_2": 30.0},
    ),
    "constrained_ftm": _ADAM,
    "ftm": replace(_ADAM, constrained=False),
    "rome": replace(_CLOSED_FORM, depth=(0.31, 0.31)),
    "memit": _CLOSED_FORM,
    "alphaedit": _CLOSED_FORM,
    "ultraedit": replace(_CLOSED_FORM, depth=(0.83, 0.93)),
    "kv_memory": _BESIDE,
    "in_context": replace(_BESIDE, rule="context", anchors=AnchorSpec(count=0, weight=0.0)),
}
"""`auto` takes curvature-aware steps; the other two are the source paper's."""
