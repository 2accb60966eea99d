"""Plain fine-tuning of one matrix (FT-M) as research code does it: what our speed is compared with.

The whole model runs in float32, forward from the embeddings and to the logits of every position of every
padded example, and back to the one matrix that may change, at each step; nothing is kept from one step to
the next. Written from the descriptions, for causal models.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3.4 (FT), as EasyEdit
(Wang et al. 2024) runs it with the objective "target_new": the answer's tokens after the prompt, Adam,
at most 25 steps, none once the loss is below 1e-2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from factedit.facts import Edit

IGNORED = -100
"""What stands in the labels where nothing is to be predicted."""


@dataclass(slots=True)
class Naive:
    """The matrix as edited, float32, and what it took.

    Attributes:
        steps: steps of the optimiser.
        tokens: tokens, with padding, of all training passes; `targets`: how many were to be predicted.
    """

    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    steps: int = 0
    tokens: int = 0
    targets: int = 0


def edit_naively(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    *,
    matrix: str,
    one_by_one: bool = False,
    batch_size: int = 64,
    epochs: int = 25,
    learning_rate: float = 5e-4,
    enough: float = 1e-2,
) -> Naive:
    """Fine-tune the parameter named `matrix` of a float32 model on the edits' own prompts.

    `one_by_one`: each edit to its end before the next; else all of them in each epoch, in batches. The
    model's weights are afterwards what they were.
    """
    parameter = dict(model.named_parameters())[matrix]
    root, found = parameter.detach().clone(), Naive()
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    parameter.requires_grad_(True)
    try:
        for group in [[edit] for edit in edits] if one_by_one else [list(edits)]:
            _train(model, tokenizer, group, parameter, found, batch_size, epochs, learning_rate, enough)
        found.weight = parameter.detach().cpu().clone()
    finally:
        parameter.data.copy_(root)
        parameter.grad = None
        for name, p in model.named_parameters():
            p.requires_grad_(trainable[name])
    return found


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    parameter: torch.nn.Parameter,
    found: Naive,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    enough: float,
) -> None:
    optimizer = torch.optim.Adam([parameter], lr=learning_rate)
    for _ in range(epochs):
        losses: list[float] = []
        for chunk in (edits[start : start + batch_size] for start in range(0, len(edits), batch_size)):
            ids, mask, labels = (t.to(parameter.device) for t in _batch(tokenizer, chunk))
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = _loss(logits, labels)
            losses.append(float(loss.detach()))
            found.tokens += ids.numel()
            found.targets += int((labels != IGNORED).sum())
            if losses[-1] >= enough:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.steps += 1
        if sum(losses) / len(losses) < enough:
            break


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the answers, averaged over each one's tokens and then over the edits."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED
    )
    counted = labels[:, 1:] != IGNORED
    return (losses.sum(1) / counted.sum(1)).mean()


def _batch(tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, padded on the right; the mask; and the answers' tokens in their places, int64 [B, L] each."""
    rows = [_tokens(tokenizer, edit) for edit in edits]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    pad = tokenizer.pad_token_id or 0

    def padded(values: Iterator[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in values])

    return (
        padded((prompt + answer for prompt, answer in rows), pad),
        padded(([1] * (len(prompt) + len(answer)) for prompt, answer in rows), 0),
        padded(([IGNORED] * len(prompt) + answer for prompt, answer in rows), IGNORED),
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, edit: Edit) -> tuple[list[int], list[int]]:
    prompt: list[int] = list(tokenizer(edit.prompt or "")["input_ids"])
    answer: list[int] = list(tokenizer(f" {edit.new_object}", add_special_tokens=False)["input_ids"])
    return prompt, answer
