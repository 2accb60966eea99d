"""Free answers: greedy generation, and the most probable next tokens.

A prompt's answer is that of plain greedy decoding of it alone, whatever else is asked; in half precision,
where rounding decides between tokens about as likely, only if it is checked (factedit.greedy).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from factedit import greedy
from factedit.drafts import Draft, Greedy, said_before
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
    *,
    drafts: Sequence[Draft | None] | None = None,
) -> list[Generation]:
    """Greedy answers, in the prompts' order. `progress` is told how many are done.

    A causal model generates until its end-of-sequence token or `max_new_tokens`. With `drafts`, known or not,
    its answers are checked (factedit.greedy); the nearer a draft is to what it says, the less it generates.
    A masked one fills 1 to 4 masks before a full stop, with as many as make its filling most probable per
    token.
    """
    if lm.task == "masked":
        return _filled(lm, prompts, max_new_tokens, batch_size, progress)
    ids = [prompt_ids(lm, prompt) for prompt in prompts]
    if drafts is None:
        found = greedy.decoded(lm, ids, max_new_tokens, batch_size, progress)
    else:
        found = greedy.checked(lm, ids, drafts, max_new_tokens, batch_size, progress=progress)
    return [generation(lm, answer) for answer in found]


def asked_again(
    lm: LanguageModel,
    prompts: Sequence[str],
    said: Sequence[str] | None,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[Generation]:
    """As `generate`, checked, so that versions can be compared by what they say.

    `said`: what another version answered to each prompt, under the same limit; the same answers come sooner.
    """
    drafts: list[Draft | None] = [None] * len(prompts)
    if said is not None and lm.task == "causal":
        drafts = [said_before(lm, p, text, max_new_tokens) for p, text in zip(prompts, said, strict=True)]
    return generate(lm, prompts, max_new_tokens, batch_size, drafts=drafts)


def generation(lm: LanguageModel, answer: Greedy) -> Generation:
    return Generation(decode(lm, answer.tokens), len(answer.tokens), answer.stopped)


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


def rank(
    lm: LanguageModel, prompts: Sequence[str], candidates: Sequence[Sequence[str]], batch_size: int = 64
) -> list[list[float]]:
    """Total log-probability (natural log) of each candidate after a space, per prompt."""
    examples: list[Example] = []
    for prompt, names in zip(prompts, candidates, strict=True):
        examples += [answer_example(lm, prompt, name, stop=False) for name in names]
    flat = log_probabilities(lm, examples, batch_size)
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


def decode(lm: LanguageModel, tokens: list[int]) -> str:
    return str(lm.tokenizer.decode(tokens, skip_special_tokens=True))


def _filled(
    lm: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> list[Generation]:
    """In batches of one length, so that no padding enters a row."""
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt_ids(lm, prompt)), []).append(place)
    answers: dict[int, Generation] = {}
    for _, group in sorted(by_length.items()):
        for start in range(0, len(group), batch_size):
            some = group[start : start + batch_size]
            new = _fill(lm, [prompts[i] for i in some], min(MAX_MASKS, max_new_tokens))
            answers.update(zip(some, new, strict=True))
            if progress is not None:
                progress(len(answers))
    return [answers[i] for i in range(len(prompts))]


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
