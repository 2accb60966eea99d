"""Free answers: greedy generation, and the most probable next tokens.

Prompts share a batch only with prompts of their own length, so that no padding enters a row: a
prompt's answer does not depend on what else was asked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.prompts import Example, answer_example, batches, next_token_example, prompt_ids

MAX_MASKS = 4
"""The longest answer, in tokens, that a masked model is asked to fill in."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model answered: text without special tokens, its tokens, whether it stopped by itself."""

    text: str
    n_tokens: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class TokenProbability:
    token: str
    probability: float


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Greedy answers, in the prompts' order. `progress` is told how many are done.

    A causal model generates until its end-of-sequence token or `max_new_tokens`. A masked one fills
    1 to 4 masks before a full stop, with as many as make its filling most probable per token.
    """
    answers: dict[int, Generation] = {}
    encoded = [prompt_ids(lm, prompt) for prompt in prompts]
    for index in _equal_lengths(encoded, batch_size):
        if lm.task == "masked":
            new = _fill(lm, [prompts[i] for i in index], min(MAX_MASKS, max_new_tokens))
        else:
            new = _decode(lm, [encoded[i] for i in index], max_new_tokens)
        answers.update(zip(index, new, strict=True))
        if progress is not None:
            progress(len(answers))
    return [answers[i] for i in range(len(prompts))]


def next_tokens(lm: LanguageModel, prompts: Sequence[str], top_k: int) -> list[list[TokenProbability]]:
    """The `top_k` most probable tokens after each prompt, best first."""
    found: dict[int, list[TokenProbability]] = {}
    examples = [next_token_example(lm, prompt) for prompt in prompts]
    for batch in batches(lm, examples, 64):
        with torch.inference_mode():
            best = target_logits(lm, batch).float().softmax(-1).topk(min(top_k, lm.model.config.vocab_size))
        for place, values, tokens in zip(
            batch.index.tolist(), best.values.tolist(), best.indices.tolist(), strict=True
        ):
            found[place] = [
                TokenProbability(token=str(lm.tokenizer.decode([token])), probability=value)
                for value, token in zip(values, tokens, strict=True)
            ]
    return [found[i] for i in range(len(prompts))]


def rank(lm: LanguageModel, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
    """Total log-probability (natural log) of each candidate after a space, per prompt."""
    examples: list[Example] = []
    for prompt, names in zip(prompts, candidates, strict=True):
        examples += [answer_example(lm, prompt, name, stop=False) for name in names]
    flat = log_probabilities(lm, examples)
    scores = iter(flat)
    return [[next(scores) for _ in names] for names in candidates]


def log_probabilities(lm: LanguageModel, examples: Sequence[Example], batch_size: int = 64) -> list[float]:
    """Total log-probability of each example's targets."""
    totals = torch.zeros(len(examples))
    for batch in batches(lm, examples, batch_size):
        with torch.inference_mode():
            scores = target_logits(lm, batch).float().log_softmax(-1)
            chosen = scores.gather(1, batch.targets[:, None]).squeeze(1).cpu()
        totals.index_add_(0, batch.index[batch.rows.cpu()], chosen)
    return [float(total) for total in totals]


def _equal_lengths(encoded: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(index)
    for length in sorted(by_length):
        group = by_length[length]
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _decode(lm: LanguageModel, ids: list[list[int]], max_new_tokens: int) -> list[Generation]:
    inputs = torch.tensor(ids, device=lm.device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=lm.eos_token_id,
        pad_token_id=lm.tokenizer.pad_token_id,
    )
    with torch.inference_mode():
        output = lm.model.generate(  # type: ignore[operator]
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
        )
    return [_generation(lm, row[inputs.shape[1] :].tolist()) for row in output]


def _generation(lm: LanguageModel, tokens: list[int]) -> Generation:
    eos = lm.eos_token_id
    stopped = eos is not None and eos in tokens
    if eos is not None and stopped:
        tokens = tokens[: tokens.index(eos)]
    return Generation(text=decode(lm, tokens), n_tokens=len(tokens), stopped=stopped)


def decode(lm: LanguageModel, tokens: list[int]) -> str:
    return str(lm.tokenizer.decode(tokens, skip_special_tokens=True))


def _fill(lm: LanguageModel, prompts: list[str], max_masks: int) -> list[Generation]:
    best: list[tuple[float, list[int]]] = [(-float("inf"), [])] * len(prompts)
    mask = lm.tokenizer.mask_token
    for count in range(1, max_masks + 1):
        examples = [answer_example(lm, prompt, " ".join([mask] * count)) for prompt in prompts]
        for batch in batches(lm, examples, len(prompts)):
            with torch.inference_mode():
                scores, tokens = target_logits(lm, batch).float().log_softmax(-1).max(-1)
            rows = zip(
                batch.index.tolist(),
                scores.view(-1, count).mean(1).tolist(),
                tokens.view(-1, count).tolist(),
                strict=True,
            )
            for place, score, filled in rows:
                best[place] = max(best[place], (score, filled))
    return [Generation(text=decode(lm, tokens), n_tokens=len(tokens), stopped=True) for _, tokens in best]
