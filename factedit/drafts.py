"""Answers checked instead of generated: one pass over a prompt and a supposed answer shows how far it is right.

What greedy decoding says next is known at every token of the draft at once. Up to its first wrong token a
draft is the greedy answer, and what should stand there is known too; only what follows must be generated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.prefix_states import PrefixStates
from factedit.prompts import Batch, Example, answer_tokens, batches, prompt_ids

TIE = 2
"""Logits that differ by no more units in the last place are equal for a half-precision model: batches of
another shape change them by as much (`python -m benchmarks.scoring_rate` tells how many answers that moves)."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A supposed answer; with the end-of-sequence token, if it is supposed to stop there.

    `keeps_ties`: where the draft's token is as likely as the best one, within half precision's rounding
    (`TIE`), it stays, so that weights which did not change say what they said before, however it is computed.
    In float32 a draft never changes the answer.
    """

    tokens: tuple[int, ...]
    keeps_ties: bool = False


NOTHING = Draft(())


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


def intended(lm: LanguageModel, prompt: str, answer: str, *, stop: bool = True) -> Draft:
    """The draft that says `answer` after a space, as an edit is trained to."""
    tokens = answer_tokens(lm, prompt, answer)
    return Draft((*tokens, lm.eos_token_id) if stop and lm.eos_token_id is not None else tuple(tokens))


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
    return Draft(tuple(tokens), keeps_ties=True)


def check(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    drafts: Sequence[Draft],
    limit: int,
    batch_size: int,
    states: PrefixStates | None = None,
) -> Iterator[Checked]:
    """Each prompt's greedy answer, at most `limit` tokens, to one token beyond the right part of its draft.

    For causal models. `states`: of the blocks below those in which the weights differ from the root's.
    """
    read = [_to_read(lm, draft, limit) for draft in drafts]
    examples = [_example(*each) for each in zip(prompts, drafts, read, strict=True)]
    for batch in batches(lm, examples, batch_size):
        with torch.inference_mode():
            logits = draft_logits(lm, examples, batch, states)
        best, tied = _best(logits, batch.targets)
        start = 0
        for place in batch.index.tolist():
            stop = start + len(examples[place].positions)
            answer = _followed(lm, drafts[place], best[start:stop], tied[start:stop], limit)
            yield Checked(place, answer, read[place], logits[start:stop])
            start = stop


def draft_logits(
    lm: LanguageModel, examples: Sequence[Example], batch: Batch, states: PrefixStates | None
) -> Tensor:
    """As `target_logits`; the blocks that `states` speaks of are skipped."""
    if states is None:
        return target_logits(lm, batch)
    prefix = states.of(lm, [examples[place].ids for place in batch.index.tolist()])
    return target_logits(lm, batch, prefix=prefix, first_block=states.block)


def _to_read(lm: LanguageModel, draft: Draft, limit: int) -> tuple[int, ...]:
    """What is read of a draft: nothing from where it stops; what follows its last token needs no telling."""
    tokens = draft.tokens[: limit - 1]
    return tokens[: tokens.index(lm.eos_token_id)] if lm.eos_token_id in tokens else tokens


def _example(prompt: Sequence[int], draft: Draft, read: tuple[int, ...]) -> Example:
    first, count = len(prompt) - 1, len(read) + 1
    # Where the draft has nothing more to say, its last target is a placeholder; `_followed` knows.
    return Example((*prompt, *read), tuple(range(first, first + count)), (*draft.tokens, 0)[:count])


def _best(logits: Tensor, targets: Tensor) -> tuple[list[int], list[bool]]:
    """By row: the likeliest token, and whether the target is as likely within rounding."""
    top = logits.max(-1)
    if logits.dtype not in (torch.float16, torch.bfloat16):
        return top.indices.tolist(), [False] * len(targets)
    own = logits.gather(1, targets[:, None]).squeeze(1).float()
    value = top.values.float()
    # A number m * 2^e with 0.5 <= m < 1 has units in the last place of eps * 2^(e - 1).
    half = value.new_tensor(torch.finfo(logits.dtype).eps / 2)
    unit = torch.ldexp(half, torch.frexp(value).exponent)
    return top.indices.tolist(), (value - own <= TIE * unit).tolist()


def _followed(
    lm: LanguageModel, draft: Draft, best: Sequence[int], tied: Sequence[bool], limit: int
) -> Greedy:
    answer = Greedy()
    for place, (likeliest, as_likely) in enumerate(zip(best, tied, strict=True)):
        supposed = draft.tokens[place] if place < len(draft.tokens) else None
        token = supposed if supposed is not None and draft.keeps_ties and as_likely else likeliest
        if token == lm.eos_token_id:
            answer.stopped = True
        else:
            answer.tokens.append(token)
        if answer.done(limit) or token != supposed:
            break
    return answer
