"""What an edit keeps beside memory: the same to the bit, and gone with it."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from factedit.disk import StorageFull
from factedit.editing import edit
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.frozen_context import FrozenContexts
from factedit.models import LanguageModel
from factedit.prompts import answer_example
from factedit.relations import Relation
from factedit.specs import ConstraintSpec, MethodSpec
from factedit.spilling import Room, Spilling
from tests.support.tiny_models import COUNTRIES, PROMPT, tiny_model


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return tiny_model(tmp_path / "model", "llama")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("limit", [0, 100, 1 << 20])
def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path, limit: int, dtype: torch.dtype) -> None:
    given = {place: (torch.randn(place + 1, 3, 2) * 100).to(dtype) for place in (4, 0, 7)}
    store = Spilling(Room(limit, tmp_path))
    store.update(given)
    assert store.in_memory <= limit
    assert store.in_memory + store.in_file == sum(tensor.nbytes for tensor in given.values())
    for place, tensor in given.items():
        assert torch.equal(store[place], tensor) and store[place].dtype == dtype
        assert store.length(place) == place + 1


def test_a_view_of_something_larger_is_kept_alone(tmp_path: Path) -> None:
    store, whole = Spilling(Room(0, tmp_path)), torch.arange(24.0).reshape(4, 6)
    store.update({0: whole[:, 1:3]})
    assert store.in_file == 8 * 4
    assert torch.equal(store[0], whole[:, 1:3])


def test_stores_share_a_room(tmp_path: Path) -> None:
    first = Spilling(Room(100, tmp_path))
    second = Spilling(Room(100, tmp_path), first)
    first.update({0: torch.ones(15)})
    second.update({0: torch.ones(20), 1: torch.ones(5)})
    assert (first.in_memory, second.in_memory, second.in_file) == (60, 20, 80)
    assert torch.equal(second[0], torch.ones(20)) and torch.equal(second[1], torch.ones(5))


def test_nothing_remains_in_the_folder(tmp_path: Path) -> None:
    store = Spilling(Room(0, tmp_path))
    store.update({0: torch.ones(1000)})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: memoryview) -> int:
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(StorageFull):
        Spilling(Room(0, tmp_path)).update({0: torch.ones(3)})


@pytest.mark.parametrize("kind", [ExampleSet, FrozenContexts])
def test_examples_give_the_same_logits_from_the_file(
    lm: LanguageModel, kind: type[ExampleSet], tmp_path: Path
) -> None:
    examples = [answer_example(lm, PROMPT.format(country), "New York") for country in COUNTRIES]
    found = []
    for limit in (1 << 30, 300):
        lm.room = Room(limit, tmp_path)
        examples_of = kind(lm, examples, range(len(examples)), 1)
        found.append(examples_of.logits([5, 0, 3])[1])
    assert torch.equal(*found)


def test_an_edit_is_the_same_to_the_bit_from_the_file(lm: LanguageModel, tmp_path: Path) -> None:
    def made(limit: int) -> dict[str, torch.Tensor]:
        lm.room = Room(limit, tmp_path)
        return edit(
            lm,
            parent={},
            edits=[Edit("1", "France", "Rome", relation="capital")],
            ledger=[],
            relations={"capital": Relation("capital", (PROMPT.format("{subject}"),))},
            anchors=[PROMPT.format(country) for country in COUNTRIES[2:]],
            method=MethodSpec(name="constrained_ftm", max_steps=5),
            blocks=[1, 2],
            constraint=ConstraintSpec(radius=0.5),
            seed=0,
            progress=lambda _: None,
        ).tensors

    written: list[int] = []
    update = Spilling.update

    def watched(self: Spilling, tensors: Any) -> None:
        update(self, tensors)
        written.append(self.in_file)

    whole = made(1 << 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spilling, "update", watched)
        spilt = made(0)
    assert max(written) > 0
    assert whole.keys() == spilt.keys()
    assert all(torch.equal(whole[name], spilt[name]) for name in whole)
