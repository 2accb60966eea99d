"""What a method means where the caller leaves things open; measured on SmolLM2-135M. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from factedit.specs import AnchorSpec, MethodName, ParameterSet

Rule = Literal["adam", "natural"]


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
}
"""`auto` takes curvature-aware steps; the other two are the source paper's."""
