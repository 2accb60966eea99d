"""POST /predict: ask any version; two at once with `compare_to`."""

from collections.abc import Sequence
from dataclasses import dataclass

import anyio.to_thread
from fastapi import APIRouter

from service import relations, versions
from service.api.asking import ask
from service.api.body import StrictRoute
from service.api.dependencies import Parts, PartsOf, Predictor
from service.api.schemas.predict import (
    AnswerOut,
    CandidateOut,
    PredictIn,
    PredictOut,
    TokenOut,
    VersionAnswers,
)
from service.errors import Invalid
from service.predictor_client import Question, WeightsCorrupt
from service.settings import Settings
from service.tables import Model, Version

router = APIRouter(tags=["predict"], route_class=StrictRoute)
MAX_RANKED_CHARACTERS = 500_000
"""What a predictor on two cores reads within the time that the API waits for it, about."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A version, and where its weights are found."""

    model: str
    version: str
    root_digest: str
    overlay_digest: str | None


@router.post("/predict", summary="Ask any version: free answers, ranked candidates, likely next tokens")
async def predict(body: PredictIn, parts: PartsOf, _: Predictor) -> PredictOut:
    asked, other, prompts = await anyio.to_thread.run_sync(_look_up, parts, body)
    answered: dict[Asked, VersionAnswers] = {}

    for which in (asked, other):
        if which is not None and which not in answered:
            answered[which] = await answers(parts, which, prompts, body)
    return PredictOut(**answered[asked].model_dump(), compared=None if other is None else answered[other])


async def answers(parts: Parts, asked: Asked, prompts: list[str], body: PredictIn) -> VersionAnswers:
    """One version's answers. Raises what service.api.asking does."""
    question = Question(
        asked.root_digest, asked.overlay_digest, prompts, body.max_tokens, body.top_k, body.candidates
    )
    found = await ask(parts, question)
    return VersionAnswers(
        model=asked.model,
        model_version=asked.version,
        root_digest=asked.root_digest,
        overlay_digest=asked.overlay_digest,
        answers=[
            AnswerOut(
                prompt=prompt,
                text=raw["text"],
                n_tokens=raw["n_tokens"],
                finish_reason="stop" if raw["stopped"] else "length",
                top_k=None if raw["top_k"] is None else [TokenOut(**token) for token in raw["top_k"]],
                candidates=None
                if raw["candidates"] is None
                else [CandidateOut(**candidate) for candidate in raw["candidates"]],
            )
            for prompt, raw in zip(prompts, found, strict=True)
        ],
    )


def _look_up(parts: Parts, body: PredictIn) -> tuple[Asked, Asked | None, list[str]]:
    with parts.database.transaction() as s:
        asked = _resolve(*versions.resolve(s, body.model))
        other = (
            None if body.compare_to is None else _resolve(*versions.resolve(s, body.compare_to, "compare_to"))
        )
        if body.prompts is not None:
            prompts = list(body.prompts)
        elif body.prompt is not None:
            prompts = [body.prompt]
        else:
            assert body.subject is not None and body.relation is not None
            prompts = relations.get(s, body.relation).training_prompts(body.subject)[:1]
    _check_size(parts.settings, prompts, body.candidates or ())
    return asked, other, prompts


def _check_size(settings: Settings, prompts: Sequence[str], candidates: Sequence[str]) -> None:
    """Each candidate is read after each prompt: of long lists, or a long text, the product is what costs."""
    if len(prompts) > settings.predictor_queue:
        raise Invalid(f"At most {settings.predictor_queue} prompts in a request.", pointer="/prompts")
    ranked = len(prompts) * len(candidates)
    if ranked > settings.max_ranked:
        raise Invalid(
            f"{len(prompts)} prompts with {len(candidates)} candidates each are {ranked:,} to rank; "
            f"at most {settings.max_ranked:,} in a request. Ask in several.",
            code="too_many_candidates",
            pointer="/candidates",
        )
    characters = len(candidates) * sum(map(len, prompts)) + len(prompts) * sum(map(len, candidates))
    if characters > MAX_RANKED_CHARACTERS:
        raise Invalid(
            f"Every candidate after every prompt makes {characters:,} characters to read; "
            f"at most {MAX_RANKED_CHARACTERS:,} in a request. Ask in several.",
            code="too_many_candidates",
            pointer="/candidates",
        )


def _resolve(model: Model, version: Version) -> Asked:
    if version.state == "quarantined":
        raise WeightsCorrupt(version.overlay_digest or model.root_digest)
    return Asked(model.name, version.id, model.root_digest, version.overlay_digest)
