"""Versions that move no weight: batch upon batch, beside edited weights, stored, and gone without a trace."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore
from factedit.context import NAME
from factedit.facts import Edit
from factedit.memory import NAMES
from factedit.models import LanguageModel
from factedit.overlay import OverlayMismatch, applied, check_fits, root_digest
from factedit.specs import ConstraintSpec, MethodSpec
from factedit.task import Edited
from tests.support.memories import (
    CONTEXT,
    FIRST,
    MEMORY,
    OTHERS,
    SECOND,
    asked,
    edited,
    held,
    hooks,
    logits,
    memory_of,
    texts,
    the_toy,
)
from tests.support.overlays import same
from tests.support.tiny_models import LAYERS
from workers.edit_process import _changes

lm = pytest.fixture(the_toy, scope="module")

WEIGHTS = MethodSpec(name="constrained_ftm", learning_rate=0.02, max_steps=150)


# Batch upon batch


def test_a_second_batch_keeps_the_first(lm: LanguageModel) -> None:
    first = edited(lm)
    second = edited(lm, SECOND, parent=first.tensors, ledger=FIRST)
    assert held(lm, second.tensors, [*FIRST, *SECOND]) == [True] * 3
    old, new = memory_of(first), memory_of(second)
    assert torch.equal(new.keys[: len(old.keys)], old.keys)
    assert torch.equal(new.values[: len(old.values)], old.values)
    assert (new.radii[: len(old.keys)] <= old.radii).all()
    assert len(new.values) == 3


def test_a_later_edit_of_the_same_prompt_takes_the_earlier_ones_place(lm: LanguageModel) -> None:
    first = edited(lm)
    again = [asked("9", "France", "Oslo")]
    second = edited(lm, again, parent=first.tensors, ledger=FIRST[1:])
    assert held(lm, second.tensors, [*again, FIRST[1]]) == [True, True]
    assert len(memory_of(second).values) == 2


def test_what_holds_already_is_not_remembered_again(lm: LanguageModel) -> None:
    first = edited(lm)
    again = edited(lm, parent=first.tensors)
    assert again.metrics["steps"] == 0
    assert same(again.tensors, first.tensors)


@pytest.mark.parametrize("ledger", [FIRST, FIRST[:1]])
def test_a_line_is_rebuilt_from_its_ledger(lm: LanguageModel, ledger: list[Edit]) -> None:
    result = edited(lm, (), ledger=ledger)
    assert held(lm, result.tensors, ledger) == [True] * len(ledger)


def test_two_batches_may_remember_at_different_blocks(lm: LanguageModel) -> None:
    first = edited(lm, blocks=[0])
    second = edited(lm, SECOND, parent=first.tensors, ledger=FIRST, blocks=[1])
    assert held(lm, second.tensors, [*FIRST, *SECOND]) == [True] * 3
    assert sorted(set(memory_of(second).blocks.tolist())) == [0, 1]


@pytest.mark.parametrize("block", [0, 2])
def test_weights_may_be_edited_on_top_of_a_memory(lm: LanguageModel, block: int) -> None:
    first = edited(lm)
    constraint = ConstraintSpec(norm="l_inf", radius=0.5)
    second = edited(
        lm, SECOND, WEIGHTS, [block], parent=first.tensors, ledger=FIRST, constraint=constraint, anchors=()
    )
    assert {name: second.tensors[name] for name in NAMES} == first.tensors
    assert len(second.tensors) > len(NAMES)
    assert held(lm, second.tensors, [*FIRST, *SECOND]) == [True] * 3
    third = edited(lm, [asked("4", "Norway", "Berlin")], parent=second.tensors, ledger=[*FIRST, *SECOND])
    assert set(third.tensors) == set(second.tensors)
    assert held(lm, third.tensors, [asked("4", "Norway", "Berlin"), *SECOND]) == [True] * 2


def test_notes_and_memory_and_weights_live_in_one_overlay(lm: LanguageModel) -> None:
    weight = lm.block_tensors(2, "mlp_out")[0]
    start = {weight: lm.tensors[weight].data * 0.9}
    noted = edited(lm, method=CONTEXT, parent=start).tensors
    both = edited(lm, SECOND, parent=noted, ledger=FIRST).tensors
    assert set(both) == {weight, NAME, *NAMES}
    assert torch.equal(both[weight], start[weight]) and torch.equal(both[NAME], noted[NAME])
    assert held(lm, both, SECOND) == [True]


# Applied and stored


def test_nothing_of_the_memory_is_left_after_an_exception(lm: LanguageModel) -> None:
    tensors = {**edited(lm).tensors, **edited(lm, method=CONTEXT).tensors}
    before, digest = logits(lm, [FIRST[0].prompt or ""]), root_digest(lm)
    with pytest.raises(KeyboardInterrupt), applied(lm, tensors):
        assert hooks(lm) == 1
        raise KeyboardInterrupt
    assert hooks(lm) == 0
    assert lm.reads is None
    assert torch.equal(logits(lm, [FIRST[0].prompt or ""]), before)
    assert root_digest(lm) == digest


@pytest.mark.parametrize("method", [MEMORY, CONTEXT], ids=lambda method: method.name)
def test_an_overlay_without_weights_goes_through_the_store(
    lm: LanguageModel, tmp_path: Path, method: MethodSpec
) -> None:
    store = CheckpointStore(tmp_path)
    tensors = edited(lm, method=method).tensors
    published = store.publish_overlay(tensors)
    loaded = store.load_overlay(published.digest)
    assert same(loaded, tensors)
    assert store.publish_overlay(edited(lm, method=method).tensors).digest == published.digest
    prompts = [item.prompt or "" for item in FIRST]
    with applied(lm, tensors):
        said = texts(lm, prompts)
    with applied(lm, loaded):
        assert texts(lm, prompts) == said


def test_an_overlay_that_does_not_fit_is_refused(lm: LanguageModel) -> None:
    memory = memory_of(edited(lm)).tensors()
    notes = edited(lm, method=CONTEXT).tensors
    check_fits(lm, {**memory, **notes})
    wrong: list[dict[str, Tensor]] = [
        {"memory.other": torch.zeros(1)},
        {"no.such.weight": torch.zeros(1)},
        {name: memory[name] for name in NAMES[1:]},
        {**memory, "memory.keys": memory["memory.keys"][:, :-1]},
        {**memory, "memory.values": memory["memory.values"].double()},
        {**memory, "memory.blocks": memory["memory.blocks"] + LAYERS},
        {**memory, "memory.owners": memory["memory.owners"] - 1},
        {NAME: torch.zeros(3)},
        {NAME: torch.zeros(3, dtype=torch.uint8)},
    ]
    for overlay in wrong:
        with pytest.raises(OverlayMismatch), applied(lm, overlay):
            pass
    assert hooks(lm) == 0


@pytest.mark.parametrize("method", [MEMORY, CONTEXT], ids=lambda method: method.name)
def test_the_integrity_report_knows_that_no_blocks_weights_moved(
    lm: LanguageModel, method: MethodSpec
) -> None:
    result = edited(lm, method=method, blocks=[1])
    report = _changes(lm, result, {})
    assert report["unchosen_blocks_unchanged"]
    assert set(report["changed_tensors"]) == set(result.tensors)
    stray = {lm.block_tensors(2, "mlp_out")[0]: torch.zeros(1)}
    moved = Edited({**result.tensors, **stray}, result.metrics, result.chosen)
    assert not _changes(lm, moved, {})["unchosen_blocks_unchanged"]
    assert _changes(lm, result, result.tensors)["changed_tensors"] == []


def test_the_root_is_the_same_to_the_last_bit(lm: LanguageModel) -> None:
    def bits() -> str:
        everything = hashlib.sha256()
        for _, tensor in [*lm.model.named_parameters(), *lm.model.named_buffers()]:
            everything.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return everything.hexdigest()

    before = bits()
    for method in (MEMORY, CONTEXT):
        with applied(lm, edited(lm, method=method).tensors):
            texts(lm, OTHERS)
    assert bits() == before
