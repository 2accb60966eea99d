"""Greedy answers of causal models, in tokens: decoded, or, where they are to be compared, checked as well.

Decoding reads rows of all lengths together, so that in half precision an answer may depend on its company
where two tokens are about as likely. What `check` says does not (factedit.fixed_shape). So what is decoded is
only a draft, and where the check disagrees, its word stands and the rest is decoded anew.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from transformers import GenerationConfig

from factedit.cues import going_on
from factedit.decoding import READ, Decoder, can_decode
from factedit.drafts import Checked, Draft, Greedy, check
from factedit.fixed_shape import ROWS
from factedit.models import LanguageModel
from factedit.prefix_states import PrefixStates

AT_ONCE = 4
"""Times the batch size: a step of decoding reads one token a row, so more rows fit."""

Ids = tuple[int, ...]
Begun = tuple[Ids, int]
"""The tokens of a prompt and of the answer so far, and how many more are wanted."""
ProgressFn = Callable[[int], None]
"""Told how many are done."""


def decoded(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    limit: int,
    batch_size: int,
    progress: ProgressFn | None = None,
) -> list[Greedy]:
    """Greedy answers of at most `limit` tokens, in the prompts' order."""
    found = [Greedy() for _ in prompts]
    _go_on(lm, prompts, found, limit, batch_size, _Count(len(prompts), batch_size, progress))
    return found


def checked(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    drafts: Sequence[Draft | None],
    limit: int,
    batch_size: int,
    *,
    states: PrefixStates | None = None,
    seen: Callable[[Checked], None] | None = None,
    progress: ProgressFn | None = None,
) -> list[Greedy]:
    """Greedy answers of at most `limit` tokens, each token the likeliest one by `check`.

    They depend on weights, prompt, `limit` and `batch_size` only: not on what else is asked, nor on `states`,
    nor on the drafts, which tell where to begin; where there is none, one is decoded. `seen` is told of each
    prompt once, when it is first read.
    """
    count = _Count(len(prompts), batch_size, progress)
    found = [Greedy() for _ in prompts]
    supposed = list(drafts)
    left = list(range(len(prompts)))
    # Each time, at least one token more is certain. Only what can't be computed twice alike is not done then.
    for attempt in range(limit):
        unknown = [place for place in left if supposed[place] is None]
        _go_on(lm, [prompts[i] for i in unknown], [found[i] for i in unknown], limit, batch_size)
        asked = [supposed[place] or _draft(lm, found[place]) for place in left]
        # Drafts of our own are read once; their states are not worth keeping.
        kept = states if attempt == 0 else None
        still = []
        for one in check(lm, [prompts[i] for i in left], asked, limit, min(ROWS, batch_size), kept):
            place = left[one.place]
            found[place], supposed[place] = one.answer, None
            if attempt == 0 and seen is not None:
                seen(replace(one, place=place))
            if one.answer.done(limit):
                count.add(1)
            else:
                still.append(place)
        left = still
        if not left:
            break
    _go_on(lm, [prompts[i] for i in left], [found[i] for i in left], limit, batch_size, count)
    return found


def _draft(lm: LanguageModel, answer: Greedy) -> Draft:
    if answer.stopped and lm.eos_token_id is not None:
        return (*answer.tokens, lm.eos_token_id)
    return tuple(answer.tokens)


class _Count:
    """Tells how many are done, a batch at a time."""

    def __init__(self, total: int, step: int, tell: ProgressFn | None) -> None:
        self._total, self._step, self._tell = total, step, tell
        self._done = self._told = 0

    def add(self, more: int) -> None:
        self._done += more
        if self._tell is not None and more and self._done >= min(self._total, self._told + self._step):
            self._tell(self._done)
            self._told = self._done


def _go_on(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Greedy],
    limit: int,
    batch_size: int,
    count: _Count | None = None,
) -> None:
    """Decode the rest of answers that have begun."""
    waiting: dict[Begun, list[Greedy]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer.done(limit):
            continue
        begun = (*prompt, *answer.tokens), limit - len(answer.tokens)
        waiting.setdefault(begun, []).append(answer)
    for begun, rest in _decoded(lm, sorted(waiting, key=lambda begun: (len(begun[0]), begun)), batch_size):
        for answer in waiting[begun]:
            answer.tokens += rest.tokens
            answer.stopped = rest.stopped
        if count is not None:
            count.add(len(waiting[begun]))


def _decoded(lm: LanguageModel, begun: list[Begun], batch_size: int) -> Iterator[tuple[Begun, Greedy]]:
    if not begun:
        return
    if not can_decode(lm):
        yield from by_the_model(lm, begun, batch_size)
        return
    # Nobody waits for the first of them: a step may read as much as fits.
    decoder = Decoder(lm, max_rows=AT_ONCE * batch_size, read=AT_ONCE * READ)
    joined = {decoder.join(*each): each for each in begun}
    while len(decoder):
        for done in decoder.step():
            yield joined[done], Greedy(list(done.tokens), done.stopped)


def by_the_model(
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
                tokens, end = row[length:], lm.eos_token_id
                stopped = end is not None and end in tokens
                if end is not None and stopped:
                    tokens = tokens[: tokens.index(end)]
                yield each, Greedy(tokens, stopped)


@torch.inference_mode()
def _generate(lm: LanguageModel, ids: Sequence[Ids], limit: int) -> list[list[int]]:
    inputs = torch.tensor(ids, device=lm.device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=lm.eos_token_id,
        pad_token_id=lm.tokenizer.pad_token_id,
    )
    with going_on(lm.cues, lm.model.base_model):
        output: torch.Tensor = lm.model.generate(  # type: ignore[operator]
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
        )
    return output.tolist()
