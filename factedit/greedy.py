"""Greedy answers of causal models, in tokens: what a draft shows is taken, the rest is decoded."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import GenerationConfig

from factedit.decoding import Decoder, can_decode
from factedit.drafts import NOTHING, Checked, Draft, Greedy, check
from factedit.models import LanguageModel
from factedit.prefix_states import PrefixStates

AT_ONCE = 4
"""Times the batch size: a step of decoding reads one token a row, so more rows fit."""

Ids = tuple[int, ...]
Begun = tuple[Ids, int]
"""The tokens of a prompt and of the answer so far, and how many more are wanted."""


def answers(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    limit: int,
    batch_size: int,
    *,
    drafts: Sequence[Draft] | None = None,
    states: PrefixStates | None = None,
    seen: Callable[[Checked], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Greedy]:
    """Greedy answers of at most `limit` tokens, in the prompts' order, on which nothing else depends.

    `seen` is told of each prompt whose draft is read (see `check`); `progress`: how many are done.
    """
    count = _Count(len(prompts), batch_size, progress)
    drafted = [NOTHING] * len(prompts) if drafts is None else drafts
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i]), drafted[i].tokens))
    found = [Greedy() for _ in prompts]
    if drafts is not None:
        asked = [prompts[i] for i in order], [drafts[i] for i in order]
        for checked in check(lm, *asked, limit, batch_size, states):
            place = order[checked.place]
            found[place] = checked.answer
            if seen is not None:
                seen(Checked(place, checked.answer, checked.read, checked.logits))
            count.add(checked.answer.done(limit))
    waiting: dict[Begun, list[Greedy]] = {}
    for place in order:
        answer = found[place]
        if not answer.done(limit):
            begun = (*prompts[place], *answer.tokens), limit - len(answer.tokens)
            waiting.setdefault(begun, []).append(answer)
    for begun, rest in _decoded(lm, list(waiting), batch_size):
        for answer in waiting[begun]:
            answer.tokens += rest.tokens
            answer.stopped = rest.stopped
        count.add(len(waiting[begun]))
    return found


class _Count:
    """Tells how many are done, a batch at a time."""

    def __init__(self, total: int, step: int, tell: Callable[[int], None] | None) -> None:
        self._total, self._step, self._tell = total, step, tell
        self._done = self._told = 0

    def add(self, more: int) -> None:
        self._done += more
        if self._tell is not None and more and self._done >= min(self._total, self._told + self._step):
            self._tell(self._done)
            self._told = self._done


def _decoded(lm: LanguageModel, begun: list[Begun], batch_size: int) -> Iterator[tuple[Begun, Greedy]]:
    if not begun:
        return
    if not _can_decode(lm):
        yield from _by_the_model(lm, begun, batch_size)
        return
    decoder = Decoder(lm, max_rows=AT_ONCE * batch_size)
    joined = {id(decoder.join(*each)): each for each in begun}
    while len(decoder):
        for done in decoder.step():
            yield joined[id(done)], Greedy(list(done.tokens), done.stopped)


def _can_decode(lm: LanguageModel) -> bool:
    # Only a yes is kept: weights that yield no numbers are no reason to say no to the model for good.
    if not getattr(lm, "_can_decode", False):
        lm._can_decode = can_decode(lm)  # type: ignore[attr-defined]
    return bool(lm._can_decode)  # type: ignore[attr-defined]


def _by_the_model(
    lm: LanguageModel, begun: Sequence[Begun], batch_size: int
) -> Iterator[tuple[Begun, Greedy]]:
    """By the model's own means, in batches of one length and limit, so that no padding enters a row."""
    alike: dict[tuple[int, int], list[Begun]] = {}
    for each in begun:
        alike.setdefault((len(each[0]), each[1]), []).append(each)
    for (length, limit), group in sorted(alike.items()):
        for start in range(0, len(group), batch_size):
            some = group[start : start + batch_size]
            for each, row in zip(some, _generate(lm, [ids for ids, _ in some], limit), strict=True):
                tokens = row[length:]
                stopped = lm.eos_token_id is not None and lm.eos_token_id in tokens
                yield each, Greedy(tokens[: tokens.index(lm.eos_token_id)] if stopped else tokens, stopped)


@torch.inference_mode()
def _generate(lm: LanguageModel, ids: Sequence[Ids], limit: int) -> list[list[int]]:
    inputs = torch.tensor(ids, device=lm.device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=lm.eos_token_id,
        pad_token_id=lm.tokenizer.pad_token_id,
    )
    output: torch.Tensor = lm.model.generate(  # type: ignore[operator]
        input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
    )
    return output.tolist()
