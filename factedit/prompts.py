"""Facts to token batches: what the model reads and where it is to answer.

A target is written as an answer naturally follows its prompt: after one space, and (for causal
models) with an end-of-sequence token, so that an edited model stops by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factedit.cues import Fired
from factedit.models import LanguageModel


@dataclass(frozen=True, slots=True)
class Example:
    """One token sequence and the positions at which tokens are predicted.

    `positions[i]` is the index in `ids` whose output predicts `targets[i]`.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of like length, padded on the right.

    input_ids: int64 [B, L]; attention_mask: int64 [B, L], or None for causal models, where what
    lies right of a token can't reach it; rows, cols: int64 [N] where to predict; targets: int64 [N];
    index: the examples' places in the list they came from, [B]; fired: which added neurons fire in
    blocks that are not computed (factedit.cues), bool [B, L, k], if any does.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    rows: Tensor
    cols: Tensor
    targets: Tensor
    index: Tensor
    fired: Fired = None


def answer_example(lm: LanguageModel, prompt: str, answer: str, *, stop: bool = True) -> Example:
    """The example that asks `prompt` and expects `answer`, then (causal, `stop`) end of sequence."""
    if lm.task == "masked":
        return _masked_example(lm, prompt, answer_tokens(lm, prompt, answer))
    before = prompt_ids(lm, prompt)
    targets = answer_tokens(lm, prompt, answer)
    if stop and lm.eos_token_id is not None:
        targets = [*targets, lm.eos_token_id]
    first = len(before) - 1
    ids = [*before, *targets[:-1]]
    return Example(tuple(ids), tuple(range(first, first + len(targets))), tuple(targets))


def next_token_example(lm: LanguageModel, prompt: str) -> Example:
    """The example that asks for the first answer token after `prompt`; its target is a placeholder."""
    if lm.task == "masked":
        return _masked_example(lm, prompt, [0])
    ids = prompt_ids(lm, prompt)
    return Example(tuple(ids), (len(ids) - 1,), (0,))


def answers_inside(lm: LanguageModel, prompt: str) -> bool:
    """Whether a masked model's prompt says itself where its answer stands: by one mask, anywhere in it.

    Zhu et al. 2020 train and test in such sentences; any other prompt is answered after its end.
    """
    return lm.task == "masked" and prompt.count(lm.tokenizer.mask_token) == 1


def prompt_ids(lm: LanguageModel, prompt: str) -> list[int]:
    """A prompt's tokens as the model reads it, without any closing special token."""
    return _ids(lm, _as_read(lm, prompt))


def _as_read(lm: LanguageModel, prompt: str) -> str:
    return prompt if lm.reads is None else lm.reads(prompt)


def _ids(lm: LanguageModel, text: str) -> list[int]:
    return _without_closing(lm, list(lm.ids_of(text)))


def _without_closing(lm: LanguageModel, ids: list[int]) -> list[int]:
    closing = (lm.tokenizer.sep_token_id, lm.eos_token_id)
    while lm.task == "causal" and len(ids) > 1 and ids[-1] in closing:
        ids.pop()
    return ids


def answer_tokens(lm: LanguageModel, prompt: str, answer: str) -> list[int]:
    """The tokens of an answer after a space, split where the tokenizer itself would split it."""
    if lm.task == "causal":
        before = prompt_ids(lm, prompt)
        whole = _ids(lm, f"{_as_read(lm, prompt)} {answer}")
        if whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
    return list(lm.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])


def names_tokens(lm: LanguageModel, prompt: str, names: Sequence[str]) -> list[list[int]]:
    """`answer_tokens` of many answers to one prompt; told all at once, the tokenizer is many times faster."""
    if lm.task == "masked" or not names:
        return [answer_tokens(lm, prompt, name) for name in names]
    before, text = prompt_ids(lm, prompt), _as_read(lm, prompt)
    wholes: list[list[int]] = lm.tokenizer([f"{text} {name}" for name in names])["input_ids"]
    found = []
    for name, ids in zip(names, wholes, strict=True):
        whole = _without_closing(lm, ids)
        apart = whole[: len(before)] != before or len(whole) == len(before)
        found.append(answer_tokens(lm, prompt, name) if apart else whole[len(before) :])
    return found


def _masked_example(lm: LanguageModel, prompt: str, targets: Sequence[int]) -> Example:
    text = _as_read(lm, prompt)
    masks = " ".join([lm.tokenizer.mask_token] * len(targets))
    inside = answers_inside(lm, text)
    text = text.replace(lm.tokenizer.mask_token, masks) if inside else f"{text} {masks}."
    ids = list(lm.ids_of(text))
    positions = [place for place, token in enumerate(ids) if token == lm.tokenizer.mask_token_id]
    return Example(tuple(ids), tuple(positions[-len(targets) :]), tuple(targets))


def batches(lm: LanguageModel, examples: Sequence[Example], batch_size: int) -> Iterator[Batch]:
    """Examples in batches of like length, shortest first."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    for start in range(0, len(order), batch_size):
        yield collate(lm, examples, order[start : start + batch_size])


def collate(lm: LanguageModel, examples: Sequence[Example], index: Sequence[int]) -> Batch:
    chosen = [examples[i] for i in index]
    width = max(len(example.ids) for example in chosen)
    pad = lm.tokenizer.pad_token_id or 0
    ids = torch.tensor([[*e.ids, *[pad] * (width - len(e.ids))] for e in chosen], device=lm.device)
    mask = None
    if lm.task == "masked":
        lengths = torch.tensor([len(e.ids) for e in chosen], device=lm.device)
        mask = (torch.arange(width, device=lm.device) < lengths[:, None]).long()
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        rows=torch.tensor([row for row, e in enumerate(chosen) for _ in e.positions], device=lm.device),
        cols=torch.tensor([col for e in chosen for col in e.positions], device=lm.device),
        targets=torch.tensor([token for e in chosen for token in e.targets], device=lm.device),
        index=torch.tensor(list(index)),
    )
