"""The predictor's JSON: what POST /predict and POST /warm take, and what they give."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workers.predictor.errors import BadQuestion, CheckpointProblem, PredictorError
from workers.predictor.questions import Answer, Question, Weights

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    root_digest: Digest
    overlay_digest: Digest | None = None

    @property
    def weights(self) -> Weights:
        return Weights(self.root_digest, self.overlay_digest)


class WarmRequest(_Body):
    """Which weights to read ahead of the first question."""


class PredictRequest(_Body):
    """Prompts for one version. `candidates`, where given, are ranked after each prompt."""

    prompts: Annotated[list[str], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, le=4096)]
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    candidates: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None

    @property
    def questions(self) -> list[Question]:
        names = None if self.candidates is None else tuple(self.candidates)
        return [Question(prompt, self.top_k, names) for prompt in self.prompts]


@dataclass(frozen=True, slots=True)
class PredictResponse:
    """`seconds` is from the request's arrival to its last answer, waiting included."""

    answers: list[Answer]
    seconds: float


M = TypeVar("M", bound=BaseModel)
_response = TypeAdapter(PredictResponse)


def parse(body: type[M], raw: bytes) -> M:
    """The request's body; BadQuestion says what is wrong with it."""
    try:
        return body.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "/".join(str(part) for part in first["loc"])
        raise BadQuestion(f"{place or 'body'}: {first['msg']}") from error


def response_json(response: PredictResponse) -> bytes:
    return _response.dump_json(response)


def error_json(error: PredictorError) -> dict[str, Any]:
    body = {"code": error.code, "message": error.message}
    if isinstance(error, CheckpointProblem):
        body["digest"] = error.digest
    return body
