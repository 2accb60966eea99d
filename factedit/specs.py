"""What a caller may choose about an edit: method, blocks, constraint, gate. No torch here.

The HTTP API takes these very models in its request body, so a rule is written once.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


MethodName = Literal[
    "auto",
    "crisp",
    "constrained_ftm",
    "ftm",
    "fta",
    "retrain",
    "ft_l",
    "ft_m",
    "loc_ft",
    "rome",
    "memit",
    "alphaedit",
    "ultraedit",
    "kv_memory",
    "in_context",
]
Norm = Literal["l_inf", "l_2", "fisher", "none"]
Initial = Literal["given", "relation_facts"]
ParameterSet = Literal["all", "mlp", "mlp_out", "attention"]


class AnchorSpec(_Spec):
    """Unmodified prompts whose answers are held to the root's while editing (KL at the answer)."""

    count: int = Field(default=1000, ge=0, le=20_000, description="How many anchors; 0 turns them off.")
    weight: Finite = Field(default=10.0, ge=0, le=1000, description="Weight of the anchors' KL in the loss.")


USUAL: Mapping[str, Mapping[str, float]] = {
    "auto": {"max_steps": 280, "learning_rate": 3e-3, "damping": 1e-2},
    "crisp": {"max_steps": 600, "learning_rate": 1e-3, "damping": 0.1},
    "retrain": {"max_steps": 5000, "learning_rate": 5e-5},
    "ft_l": {"max_steps": 5000},
    "ft_m": {"max_steps": 5000},
    "loc_ft": {"max_steps": 5000},
}
"""The methods' own defaults, where these are not the fields'."""
IN_EPOCHS = frozenset({"retrain", "ft_l", "ft_m", "loc_ft"})
"""The methods that go over all facts in epochs."""
FROM_ANY_STATE: frozenset[MethodName] = frozenset(
    {"crisp", "constrained_ftm", "ftm", "fta", "ft_l", "ft_m", "loc_ft"}
)


class MethodSpec(_Spec):
    """How the weights are moved. What is null is the method's default (factedit.presets)."""

    name: MethodName = Field(
        default="auto",
        description="`constrained_ftm`: fine-tune on the modified facts inside a ball around the root; "
        "`ftm`: the same with no ball; `auto`: a neuron for each subject first, then fine-tuning beside "
        "anchors by steps that avoid the directions which unmodified facts use (and that alone, inside "
        "your ball, if you give a constraint); `crisp`: steps kept out of directions of high curvature. "
        "`fta`: modified and unmodified facts mixed, with no ball unless one is given; `retrain`: "
        "the reference, all facts anew from the root. One matrix, on the edit's own prompt: `ft_l`, `ft_m`, "
        "`loc_ft`. Closed form, with no ball: `rome`, `memit`, `alphaedit`, `ultraedit`. No weight at all: "
        "`kv_memory` calls up what to answer, `in_context` puts the facts in the prompt.",
    )
    parameters: ParameterSet | None = Field(
        default=None,
        description="Which matrices of a chosen block may change; `all`: norms and biases too.",
    )
    max_steps: int = Field(
        default=120,
        ge=1,
        le=5000,
        description="Optimiser steps at most (`auto`: 280; `crisp`: 600; where the method goes by epochs: "
        "5000); stops early once every edit holds.",
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="`retrain`, `ft_l`, `ft_m`, `loc_ft`: how often each example is seen at most.",
    )
    learning_rate: Finite = Field(
        default=5e-4,
        gt=0,
        le=1,
        description="Adam's step size (`auto`: 3e-3; `crisp`: 1e-3; `retrain`: 5e-5).",
    )
    damping: Finite = Field(
        default=3e-3,
        gt=0,
        le=100,
        description="The share of the mean curvature below which a direction is unused (`auto`: 1e-2); "
        "`crisp`: the share of all curvature that is left open to steps, below 1 (0.1); "
        "`rome`, `memit`: what is added to the covariance.",
    )
    anchors: AnchorSpec | None = Field(
        default=None,
        description="`fta` and `retrain` train on the anchors' own answers, whatever the KL's weight.",
    )
    unmodified_share: Finite | None = Field(
        default=None,
        gt=0,
        le=0.95,
        description="`fta`: which share of each batch is unmodified facts; null: one half.",
    )
    initial: Initial = Field(
        default="given",
        description="`relation_facts`: the chosen weights are first fine-tuned on the catalogue's facts of "
        "the edited relations, inside the constraint, and edited then.",
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_budget(cls, given: Any) -> Any:
        name = given.get("name", "auto") if isinstance(given, dict) else None
        return {**USUAL[name], **given} if isinstance(name, str) and name in USUAL else given

    @model_validator(mode="after")
    def _matrices_only(self) -> Self:
        if self.name in ("auto", "crisp") and self.parameters == "all":
            raise ValueError(
                f"`{self.name}` moves matrices only; use mlp, mlp_out, attention, or constrained_ftm."
            )
        return self

    @model_validator(mode="after")
    def _a_share_of_the_curvature(self) -> Self:
        if self.name == "crisp" and self.damping >= 1:
            raise ValueError("`crisp` leaves a share of the curvature open: give a damping below 1.")
        return self

    @model_validator(mode="after")
    def _options_of_this_method(self) -> Self:
        if self.unmodified_share is not None and self.name != "fta":
            raise ValueError(f"`{self.name}` mixes in no unmodified facts; unmodified_share is for `fta`.")
        if self.epochs is not None and self.name not in IN_EPOCHS:
            raise ValueError(f"`{self.name}` does not go by epochs; give max_steps.")
        if self.initial != "given" and self.name not in FROM_ANY_STATE:
            raise ValueError(
                f"`{self.name}` starts from the weights as given; initial is for "
                f"{', '.join(sorted(FROM_ANY_STATE))}."
            )
        return self


class ConstraintSpec(_Spec):
    """The set the chosen weights stay in, around the root's weights."""

    norm: Norm | None = Field(
        default=None,
        description="`l_inf`: weight by weight; `l_2`: all chosen weights together; `fisher`: together, each "
        "weighed by the Fisher information that unmodified facts give of it; null: the method's default.",
    )
    radius: Finite | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Per weight for `l_inf`, over all chosen weights for `l_2` and `fisher` "
        "(whose weights are 1 on average); null: the method's default.",
    )


class GateSpec(_Spec):
    """When a candidate is let through. See factedit.gate."""

    margin: Finite = Field(
        default=0.05, gt=0, lt=1, description="Largest share of known probes that may be lost."
    )
    alpha: Finite = Field(default=0.01, gt=0, lt=0.5, description="Level of McNemar's one-sided test.")
    confidence: Finite = Field(
        default=0.95, gt=0.5, lt=1, description="Of the upper bound on the share lost."
    )
    probes: int = Field(default=500, ge=1, le=20_000, description="Known probes to score first.")
    min_efficacy: Finite = Field(default=0.5, ge=0, le=1, description="Refuse when fewer of the edits hold.")

    def looser(self) -> dict[str, float]:
        """What lets more candidates through than the usual gate does, by name."""
        usual, given = GateSpec().model_dump(), self.model_dump()
        return {
            name: value
            for name, value in given.items()
            if (value > usual[name] if name == "margin" else value < usual[name])
        }


BlockIndex = Annotated[int, Field(ge=0)]
Blocks = Literal["auto", "first", "last"] | Annotated[list[BlockIndex], Field(min_length=1, max_length=512)]
