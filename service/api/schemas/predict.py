"""The body of POST /predict and its answer."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.api.schemas.common import Body
from service.api.text import FreePrompt, Reference, Words

MAX_PROMPTS = 256
EXAMPLES: list[Any] = [
    {"model": "smollm2", "prompt": "The capital of France is"},
    {"model": "smollm2", "subject": "Burundi", "relation": "capital", "candidates": ["Gitega", "Bujumbura"]},
    {"model": "smollm2", "compare_to": "smollm2@root", "prompts": ["The capital of Burundi is"], "top_k": 5},
]


class PredictIn(Body):
    """What to ask: a `prompt`, several `prompts`, or a `subject` and its `relation`."""

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})

    model: Reference = Field(
        description="`model` (its production version), `model@alias`, `model@root` or `model@ver_…`."
    )
    prompt: FreePrompt | None = None
    prompts: list[FreePrompt] | None = Field(
        default=None, min_length=1, max_length=MAX_PROMPTS, fail_fast=True
    )
    subject: Words | None = None
    relation: Words | None = None
    candidates: list[Words] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        fail_fast=True,
        description="Answers to rank after each prompt. Prompts times candidates are at most 4,096, "
        "unless whoever runs this service has set another limit.",
    )
    top_k: int | None = Field(default=None, ge=1, le=100, description="The most probable next tokens.")
    max_tokens: int = Field(default=16, ge=0, le=1024, description="0: rank only, generate nothing.")
    compare_to: Reference | None = Field(default=None, description="Ask this version the same.")

    @model_validator(mode="after")
    def _one_way_of_asking(self) -> Self:
        pair = self.subject is not None or self.relation is not None
        if sum((self.prompt is not None, self.prompts is not None, pair)) != 1:
            raise ValueError("Give either `prompt`, or `prompts`, or `subject` with `relation`.")
        if pair and (self.subject is None or self.relation is None):
            raise ValueError("`subject` and `relation` belong together; give both.")
        return self


class TokenOut(BaseModel):
    token: str
    probability: float


class CandidateOut(BaseModel):
    """`log_probability` is of all its tokens; `probability` is among the candidates."""

    text: str
    log_probability: float
    probability: float


class AnswerOut(BaseModel):
    """A version's answer to one prompt, by greedy decoding."""

    prompt: str
    text: str
    n_tokens: int
    finish_reason: Literal["stop", "length"] = Field(description="`stop`: the model ended its answer itself.")
    top_k: list[TokenOut] | None
    candidates: list[CandidateOut] | None


class VersionAnswers(BaseModel):
    """Who answered, and what."""

    model: str
    model_version: str
    root_digest: str
    overlay_digest: str | None = Field(description="null: the root itself.")
    answers: list[AnswerOut]


class PredictOut(VersionAnswers):
    """Answers in the order of the prompts; `compared` are the other version's to the same."""

    object: Literal["prediction"] = "prediction"
    compared: VersionAnswers | None = None
