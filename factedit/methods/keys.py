"""Where a model looks a fact up: at its subject's last token, by what enters a matrix there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.named import last_named
from factedit.prefixes import PREFIXES
from factedit.prompts import Example, answer_example, prompt_ids
from factedit.relations import Relation
from factedit.trees import Ids, read_rows, trees
from factedit.wording import edit_prompt

BATCH = 64
NOT_THERE = "The forward pass did not go through the module that was to be read."


@dataclass(frozen=True, slots=True)
class Context:
    """An edit's prompt, bare or after a lead-in sentence, with its new answer.

    Attributes:
        edit: the edit's place in its list.
        lookup: the index in the example's ids of the subject's last token.
        weight: in the mean over the edit's contexts; the bare prompt counts as much as all others.
    """

    edit: int
    example: Example
    lookup: int
    weight: float
    bare: bool

    def up_to_lookup(self) -> Example:
        """No token right of the lookup can reach it in a causal model."""
        return Example(self.example.ids[: self.lookup + 1], (self.lookup,), (0,))


def contexts(
    lm: LanguageModel, edits: Sequence[Edit], relations: Mapping[str, Relation], lead_ins: int, seed: int
) -> list[Context]:
    """Every edit's prompt, bare and then after `lead_ins` neutral sentences; edits stay together."""
    found: list[Context] = []
    for place, edit in enumerate(edits):
        prompt = edit_prompt(edit, relations)
        starts = [PREFIXES[(seed + place * lead_ins + i) % len(PREFIXES)] for i in range(lead_ins)]
        for number, text in enumerate([prompt, *(f"{start} {prompt}" for start in starts)]):
            weight = 1.0 if not lead_ins else 0.5 if number == 0 else 0.5 / lead_ins
            example = answer_example(lm, text, edit.new_object)
            lookup = subject_end(lm, text, edit.subject)
            found.append(Context(place, example, lookup, weight, bare=number == 0))
    return found


def subject_end(lm: LanguageModel, prompt: str, subject: str) -> int:
    """The index in the prompt's ids of its subject's last token.

    The prompt's last token, where the subject does not occur in it.
    """
    last = len(prompt_ids(lm, prompt)) - 1
    place = last_named(prompt, subject)
    if place is None:
        return last
    text = prompt if lm.reads is None else lm.reads(prompt)
    # Whatever the model reads besides the prompt comes before it.
    end = len(text) - len(prompt) + place[1]
    if not lm.tokenizer.is_fast:
        return min(last, len(lm.tokenizer(text[:end], add_special_tokens=False)["input_ids"]) - 1)
    spans = lm.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    # Special tokens span nothing; a character may be split over several tokens.
    inside = [i for i, (start, stop) in enumerate(spans) if start < end and start < stop]
    return min(last, max(inside, default=last))


@dataclass(frozen=True, slots=True)
class Lookups:
    """Contexts up to their lookups; one that another one begins with is read in passing.

    Attributes:
        at: by context, the example that it is read in, and the index in that one's ids.
    """

    examples: ExampleSet
    at: list[tuple[int, int]]


def lookups(lm: LanguageModel, found: Sequence[Context], first_block: int) -> Lookups:
    """The contexts up to their lookups, cached below `first_block`."""
    read, at = _in_passing([c.up_to_lookup().ids for c in found], lm.task == "causal")
    examples = ExampleSet(lm, read, list(range(len(read))), first_block)
    if found and first_block > 0:
        # A model's first pass from a cached prefix tries it out on tokens that our hooks must not read.
        with torch.no_grad():
            examples.logits([0])
    return Lookups(examples, at)


def _in_passing(ends: Sequence[tuple[int, ...]], causal: bool) -> tuple[list[Example], list[tuple[int, int]]]:
    """(what to read so that every sequence's last token is read; by sequence, in which, and where)."""
    ids: list[tuple[int, ...]] = []
    positions: list[set[int]] = []
    read_in: dict[tuple[int, ...], int] = {}
    # In this order whatever begins with a sequence comes just before it.
    for end in sorted(set(ends), reverse=True):
        if not (causal and ids and ids[-1][: len(end)] == end):
            ids.append(end)
            positions.append(set())
        read_in[end] = len(ids) - 1
        positions[-1].add(len(end) - 1)
    examples = [
        Example(each, tuple(sorted(at)), (0,) * len(at)) for each, at in zip(ids, positions, strict=True)
    ]
    return examples, [(read_in[end], len(end) - 1) for end in ends]


def mean_over_contexts(rows: Tensor, found: Sequence[Context]) -> Tensor:
    """Rows of contexts, [n, d], to one row an edit by the contexts' weights."""
    owner = torch.tensor([c.edit for c in found], device=rows.device)
    weight = torch.tensor([c.weight for c in found], device=rows.device)
    mean = rows.new_zeros((int(owner.max()) + 1 if found else 0, rows.shape[1]))
    return mean.index_add_(0, owner, rows * weight[:, None])


class _Read(Exception):
    """Carries what modules took or gave out of a forward pass that need go no further."""

    def __init__(self, *hidden: Tensor) -> None:
        self.hidden = hidden


@torch.no_grad()
def read_inputs(read: Lookups, module: nn.Module) -> Tensor:
    """What enters `module` at the lookups, one row a context, [n, d_in] float32."""

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Read(args[0])

    with _hooked(module.register_forward_pre_hook(stop)):
        return _rows(read)


@torch.no_grad()
def read_outputs(read: Lookups, module: nn.Module) -> Tensor:
    """What leaves `module` (a block or a matrix) likewise, [n, d] float32."""

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        raise _Read(output[0] if isinstance(output, tuple) else output)

    with _hooked(module.register_forward_hook(stop)):
        return _rows(read)


@torch.no_grad()
def read_ends(
    lm: LanguageModel, sequences: Sequence[Ids], inner: Sequence[nn.Module], outer: nn.Module
) -> tuple[list[Tensor], Tensor]:
    """(what enters each `inner`, what leaves `outer`, above them) at each sequence's last token, likewise."""
    entered: dict[nn.Module, Tensor] = {}

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        entered[module] = args[0]

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        raise _Read(*(entered[each] for each in inner), output[0] if isinstance(output, tuple) else output)

    order: list[int] = []
    pieces: list[list[Tensor]] = []
    for rows in trees(lm, sequences):
        hooks = [module.register_forward_pre_hook(enter) for module in inner]
        try:
            with _hooked(*hooks, outer.register_forward_hook(stop)):
                read_rows(lm, lm.model.base_model, rows)
        except _Read as stopped:
            at = torch.tensor([(each.row, each.path[-1]) for each in rows.placed], device=lm.device)
            pieces.append([hidden[at[:, 0], at[:, 1]] for hidden in stopped.hidden])
        else:
            raise RuntimeError(NOT_THERE)
        order += [each.sequence for each in rows.placed]
    back = torch.tensor(order, device=lm.device).argsort()
    *entering, leaving = (torch.cat(part)[back].float() for part in zip(*pieces, strict=True))
    return entering, leaving


@contextmanager
def _hooked(*handles: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(read: Lookups) -> Tensor:
    """What a hook carries out of the passes, at every context's lookup, [n, d] float32."""
    examples = read.examples
    place: dict[tuple[int, int], int] = {}
    pieces: list[Tensor] = []
    for index in examples.by_length(range(len(examples)), examples.lm.at_once(BATCH)):
        batch, prefix = examples.batch(index)
        try:
            target_logits(examples.lm, batch, prefix=prefix, first_block=examples.first_block)
        except _Read as stopped:
            for row, col in zip(batch.rows.tolist(), batch.cols.tolist(), strict=True):
                place[index[row], col] = len(place)
            (hidden,) = stopped.hidden
            pieces.append(hidden[batch.rows, batch.cols])
        else:
            raise RuntimeError(NOT_THERE)
    order = torch.tensor([place[at] for at in read.at], device=examples.lm.device)
    return torch.cat(pieces)[order].float()
