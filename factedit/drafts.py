"""Answers checked instead of generated: one pass over prompt and draft shows how far the draft is right.

What greedy decoding says next is known at every token of the draft at once. Up to its first wrong token a
draft is the greedy answer, and what should stand there is known too; only what follows must be generated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factedit.fixed_shape import fixed, width_for
from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.prefix_states import PrefixStates
from factedit.prompts import Batch, Example, prompt_ids

Draft = tuple[int, ...]
"""A supposed answer; with the end-of-sequence token, if it is supposed to stop there."""


@dataclass(slots=True)
class Greedy:
    """A greedy answer so far: `tokens`, without the end-of-sequence token that `stopped` it."""

    tokens: list[int] = field(default_factory=list)
    stopped: bool = False

    def done(self, limit: int) -> bool:
        return self.stopped or len(self.tokens) >= limit


@dataclass(frozen=True, slots=True)
class Checked:
    """A prompt, by its place; its answer as far as the draft shows it; and what the model thought meanwhile.

    read: the draft's tokens that were read after the prompt; logits: after the prompt and after each of them.
    """

    place: int
    answer: Greedy
    read: tuple[int, ...]
    logits: Tensor


def said_before(lm: LanguageModel, prompt: str, answer: str, limit: int) -> Draft:
    """The draft that says a free answer of at most `limit` tokens again, of which only the text was kept."""
    text = answer.rstrip("\ufffd")  # half of a character, at the limit
    before = prompt_ids(lm, prompt)
    whole = prompt_ids(lm, prompt + text)
    if whole[: len(before)] != before:
        whole = [*before, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]
    tokens = whole[len(before) :][:limit]
    if len(tokens) < limit and text == answer and lm.eos_token_id is not None:
        tokens.append(lm.eos_token_id)
    return tuple(tokens)


def check(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    drafts: Sequence[Draft],
    limit: int,
    rows: int,
    states: PrefixStates | None = None,
) -> Iterator[Checked]:
    """Each prompt's greedy answer, at most `limit` tokens, to one token beyond the right part of its draft.

    For causal models. What is likeliest after some tokens does not depend on draft, company or `states`
    (factedit.fixed_shape), which are of the blocks below those in which the weights differ from the root's.
    """
    read = [_to_read(lm, draft, limit) for draft in drafts]
    by_width: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_width.setdefault(width_for(lm, len(prompt) + limit - 1), []).append(place)
    for width, places in sorted(by_width.items()):
        for start in range(0, len(places), rows):
            some = places[start : start + rows]
            examples = [_example(prompts[place], read[place], limit) for place in some]
            with torch.inference_mode():
                batch = fixed(lm, examples, rows, width)
                logits = draft_logits(lm, examples, batch, states).unflatten(0, (rows, limit))[: len(some)]
            for place, best, own in zip(some, logits.argmax(-1).tolist(), logits, strict=True):
                answer = _followed(lm, drafts[place], best, limit)
                yield Checked(place, answer, read[place], own[: len(read[place]) + 1])


def draft_logits(
    lm: LanguageModel, examples: Sequence[Example], batch: Batch, states: PrefixStates | None
) -> Tensor:
    """As `target_logits`; the blocks that `states` speaks of are skipped."""
    if states is None:
        return target_logits(lm, batch)
    rows, width = batch.input_ids.shape
    prefix = states.of(lm, [example.ids for example in examples], rows, width)
    return target_logits(lm, batch, prefix=prefix, first_block=states.block)


def _to_read(lm: LanguageModel, draft: Draft, limit: int) -> tuple[int, ...]:
    """What is read of a draft: nothing from where it stops; what follows its last token needs no telling."""
    tokens = draft[: limit - 1]
    return tokens[: tokens.index(lm.eos_token_id)] if lm.eos_token_id in tokens else tokens


def _example(prompt: Sequence[int], read: tuple[int, ...], limit: int) -> Example:
    """Asks at every place that an answer may have; the targets are placeholders."""
    first = len(prompt) - 1
    return Example((*prompt, *read), tuple(range(first, first + limit)), (0,) * limit)


def _followed(lm: LanguageModel, draft: Draft, best: Sequence[int], limit: int) -> Greedy:
    answer = Greedy()
    for place, token in enumerate(best):
        if token == lm.eos_token_id:
            answer.stopped = True
        else:
            answer.tokens.append(token)
        if answer.done(limit) or token != (draft[place] if place < len(draft) else None):
            break
    return answer
