"""What a caller may choose about an edit: method, blocks, constraint, gate. No torch here.

The HTTP API takes these very models in its request body, so a rule is written once.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


MethodName = Literal[
    "auto", "constrained_ftm", "ftm", "rome", "memit", "alphaedit", "ultraedit", "kv_memory", "in_context"
]
Norm = Literal["l_inf", "l_2", "none"]
ParameterSet = Literal["all", "mlp", "mlp_out", "attention"]


class AnchorSpec(_Spec):
    """Unmodified prompts whose answers are held to the root's while editing (KL at the answer)."""

    count: int = Field(default=1000, ge=0, le=20_000, description="How many anchors; 0 turns them off.")
    weight: Finite = Field(default=10.0, ge=0, le=1000, description="Weight of the anchors' KL in the loss.")


class MethodSpec(_Spec):
    """How the weights are moved. What is null is the method's default (factedit.presets)."""

    name: MethodName = Field(
        default="auto",
        description="`constrained_ftm`: fine-tune on the modified facts inside a ball around the root; "
        "`ftm`: the same with no ball; `auto`: inside the ball too, by steps that avoid the directions "
        "which unmodified facts use. Closed form, with no ball: `rome`, `memit`, `alphaedit`, `ultraedit`. "
        "No weight at all: `kv_memory` calls up what to answer, `in_context` puts the facts in the prompt.",
    )
    parameters: ParameterSet | None = Field(
        default=None,
        description="Which matrices of a chosen block may change; `all`: norms and biases too.",
    )
    max_steps: int = Field(
        default=120, ge=1, le=5000, description="Optimiser steps at most; stops early once every edit holds."
    )
    learning_rate: Finite = Field(
        default=5e-4, gt=0, le=1, description="Adam's step size; `auto` needs none."
    )
    damping: Finite = Field(
        default=3e-3,
        gt=0,
        le=100,
        description="`auto`: the share of the mean curvature below which a direction counts as unused.",
    )
    anchors: AnchorSpec | None = None

    @model_validator(mode="after")
    def _matrices_only(self) -> Self:
        if self.name == "auto" and self.parameters == "all":
            raise ValueError("`auto` moves matrices only; use mlp, mlp_out, attention, or constrained_ftm.")
        return self


class ConstraintSpec(_Spec):
    """The set the chosen weights stay in, around the root's weights."""

    norm: Norm = "l_inf"
    radius: Finite | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Per weight for `l_inf`, over all chosen weights for `l_2`; null: the method's default.",
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


BlockIndex = Annotated[int, Field(ge=0)]
Blocks = Literal["auto", "first", "last"] | Annotated[list[BlockIndex], Field(min_length=1, max_length=512)]
