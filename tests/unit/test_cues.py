"""A neuron that waits for another one's firing does so however a sequence is read."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from factedit.added_neurons import Neurons, joined, mlp_of
from factedit.cues import Cues, HeardAt, after, batch_of, in_order, one_by_one, seen_by
from factedit.decoding import Decoder, decode
from factedit.example_sets import ExampleSet
from factedit.frozen_context import FrozenContexts
from factedit.greedy import by_the_model
from factedit.models import LanguageModel
from factedit.overlay import OverlayMismatch, applied
from factedit.prompts import Example
from factedit.ragged import Part, Rows, last_logits
from factedit.ranking import continuation, totals
from tests.support.tiny_models import tiny_model, without_attention
from tests.support.tiny_neurons import waiting_neurons

CUE = 9
"""The token at which the first neuron fires."""


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    """In its first block tokens do not see each other: the cue fires at its own token, wherever that is."""
    torch.set_num_threads(1)
    found = tiny_model(tmp_path, "llama")
    without_attention(found, block=0)
    return found


@pytest.fixture
def neurons(lm: LanguageModel) -> Neurons:
    return waiting_neurons(lm, CUE)


def sequences(lm: LanguageModel, count: int, seed: int) -> list[tuple[int, ...]]:
    """Some of them with the cue, somewhere."""
    chance, size = random.Random(seed), lm.model.config.vocab_size
    found = [tuple(chance.randrange(size) for _ in range(chance.randint(2, 12))) for _ in range(count)]
    return [(*ids[:3], CUE, *ids[3:]) if place % 2 else ids for place, ids in enumerate(found)]


def logits(lm: LanguageModel, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return found


def fired_at(lm: LanguageModel, neurons: Neurons, ids: tuple[int, ...]) -> list[bool]:
    """Where the first neuron fires; found without the code that is tested."""
    entered: list[torch.Tensor] = []
    handle = mlp_of(lm, 0).register_forward_pre_hook(lambda _, args: entered.append(args[0][0]))
    logits(lm, ids)
    handle.remove()
    return (entered[0] @ neurons.gate[0] > 0.5 + 0.05).tolist()


def alone(lm: LanguageModel, ids: tuple[int, ...], limit: int) -> list[int]:
    """A greedy answer by whole passes."""
    told = list(ids)
    for _ in range(limit):
        best = int(logits(lm, tuple(told))[-1].argmax())
        if best == lm.eos_token_id:
            break
        told.append(best)
    return told[len(ids) :]


def test_it_fires_from_its_cue_on_and_nowhere_else(lm: LanguageModel, neurons: Neurons) -> None:
    free = Neurons(**{**_fields(neurons), "cues": torch.tensor([-1, -1])})
    some = 0
    for ids in sequences(lm, 12, seed=0):
        root = logits(lm, ids)
        with applied(lm, neurons.tensors()):
            found = logits(lm, ids)
        fired = fired_at(lm, neurons, ids)
        first = fired.index(True) if any(fired) else len(ids)
        some += any(fired)
        assert torch.equal(found[:first], root[:first])
        if first < len(ids):
            assert not torch.allclose(found[first], root[first], atol=1e-3)
        if first == 0:  # it has said so at every token, as one does that waits for nothing
            with applied(lm, free.tensors()):
                torch.testing.assert_close(found, logits(lm, ids))
    assert 6 <= some < 12


def _fields(neurons: Neurons) -> dict[str, torch.Tensor]:
    return {name: getattr(neurons, name) for name in Neurons.__slots__}


def only_together(neurons: Neurons) -> Neurons:
    """The second fires at the very tokens at which the first does, instead of from there on."""
    return replace(neurons, cues=torch.tensor([-1, -1]), together=torch.tensor([-1, 0]))


def test_one_that_fires_together_with_another_does_so_at_its_token_alone(
    lm: LanguageModel, neurons: Neurons
) -> None:
    without_attention(lm, block=1)  # so that what is said at a token is seen at that one alone
    without_attention(lm, block=2)
    some = 0
    for ids in sequences(lm, 12, seed=1):
        root, fired = logits(lm, ids), torch.tensor(fired_at(lm, neurons, ids))
        with applied(lm, only_together(neurons).tensors()):
            moved = (logits(lm, ids) - root).abs().amax(1) > 1e-3
        assert torch.equal(moved, fired)
        some += int(fired.sum())
    assert some >= 6


@pytest.fixture(params=["waiting", "together"])
def edited(request: pytest.FixtureRequest, lm: LanguageModel, neurons: Neurons) -> Iterator[LanguageModel]:
    """One neuron fires from where another does on, or at the same tokens."""
    version = neurons if request.param == "waiting" else only_together(neurons)
    with applied(lm, version.tensors()):
        yield lm


@pytest.mark.parametrize("read", [1, 3, 64])
def test_decoding_in_rows_that_come_and_go(edited: LanguageModel, read: int) -> None:
    prompts = sequences(edited, 14, seed=read)
    decoder = Decoder(edited, max_rows=4, read=read)
    joined = [decoder.join(ids, 3 + place % 4) for place, ids in enumerate(prompts)]
    while len(decoder):
        decoder.step()
    for place, (ids, found) in enumerate(zip(prompts, joined, strict=True)):
        assert found.tokens == alone(edited, ids, 3 + place % 4)


def test_what_is_decoded_shows_that_it_waits(lm: LanguageModel, neurons: Neurons) -> None:
    prompts = sequences(lm, 14, seed=5)
    before = [found.tokens for found in decode(lm, prompts, 6)]
    with applied(lm, neurons.tensors()):
        after_it = [found.tokens for found in decode(lm, prompts, 6)]
    assert before != after_it


def test_generation_by_the_models_own_means(edited: LanguageModel) -> None:
    begun = [(ids, 5) for ids in sequences(edited, 10, seed=2)]
    for (ids, _), found in by_the_model(edited, begun, batch_size=4):
        assert found.tokens == alone(edited, ids, 5)


def test_continuations_do_not_hear_each_others_cues(edited: LanguageModel) -> None:
    prompts = sequences(edited, 6, seed=3)
    branches = [[(CUE, 5, 6), (7, 8, 9), (10, CUE, 4), (11, 12)] for _ in prompts]
    asked = [(ids, branch) for ids, each in zip(prompts, branches, strict=True) for branch in each]
    found = totals(edited, [continuation(*pair) for pair in asked])
    for (ids, branch), total in zip(asked, found, strict=True):
        rows = logits(edited, (*ids, *branch))[len(ids) - 1 : -1].log_softmax(-1)
        assert total == pytest.approx(float(rows.gather(1, torch.tensor(branch)[:, None]).sum()), abs=1e-3)


@pytest.mark.parametrize("first_block", [1, 0])
@pytest.mark.parametrize("kind", [ExampleSet, FrozenContexts])
def test_examples_whose_lower_blocks_or_contexts_are_kept(
    edited: LanguageModel, kind: type[ExampleSet], first_block: int
) -> None:
    texts = sequences(edited, 9, seed=4)
    examples = [
        Example(ids, tuple(range(len(ids) // 2, len(ids))), (0,) * (len(ids) - len(ids) // 2))
        for ids in texts
    ]
    kept = kind(edited, examples, range(len(texts)), first_block)
    index = [5, 1, 2, 8, 3, 0, 4, 6, 7]
    early = [CUE in ids[: len(ids) // 2] for ids in texts]
    assert sum(early) > 2 and sum(CUE in ids for ids in texts) < 9
    with torch.no_grad():
        batch, found = kept.logits(index)
    wanted = torch.cat([logits(edited, texts[i])[len(texts[i]) // 2 :] for i in index])
    assert batch.index.tolist() == index
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_what_was_heard_and_is_not_computed_again() -> None:
    cues = Cues(torch.tensor([0, 2, 2]))
    cues.fired = torch.zeros(2, 4, 3, dtype=torch.bool)
    for row, token, neuron in ((0, 0, 1), (0, 2, 0), (0, 2, 1), (0, 3, 0), (1, 1, 2)):
        cues.fired[row, token, neuron] = True
    heard = HeardAt(cues)
    # Before the start everything, from there on the lower blocks; by the sequence's own tokens, 0, 2 and 3.
    assert heard.kept(0, (0, 2, 3), block=2, start=1) == [(-1, 1), (0, 0), (1, 0)]
    assert heard.kept(0, range(4), block=2) == [(2, 0), (3, 0)] and heard.kept(1, range(4), block=2) == []
    before, fired = batch_of([[], [(-1, 1), (0, 0), (1, 0)]], 3, cues)
    assert before is not None and before.nonzero().tolist() == [[1, 1]]
    assert fired is not None and fired.nonzero().tolist() == [[1, 0, 0], [1, 1, 0]]
    assert fired.shape == (2, 3, 3) and before.shape == (2, 3)
    assert batch_of([[], []], 3, cues) == batch_of([[(0, 1)]], 3, None) == (None, None)
    assert HeardAt(None).kept(0, range(4), block=2) == []


def test_orders() -> None:
    fired = torch.tensor([[[0, 1], [1, 0], [0, 0]]]).bool()
    assert one_by_one(None) is None
    assert one_by_one(fired).tolist() == [[[False, True], [True, True], [True, True]]]  # type: ignore[union-attr]
    before = torch.tensor([[True, False]])
    assert after(before).so_far(None).tolist() == [[[True, False]]]  # type: ignore[union-attr]
    assert after(~before, fired).so_far(fired).tolist() == [[[False, True], [True, True], [True, True]]]  # type: ignore[union-attr]
    alone = torch.eye(3, dtype=torch.bool)[None]
    assert torch.equal(seen_by(alone).so_far(fired), fired)  # type: ignore[arg-type]


def test_what_is_given_has_fired_too() -> None:
    fired, cues = torch.tensor([[[0, 1], [1, 0], [0, 0]]]).bool(), Cues(torch.tensor([0, 1]))
    with in_order(after(None, fired)):
        assert torch.equal(cues.now(), fired)  # type: ignore[arg-type]
        cues.note(torch.tensor([1]), torch.tensor([[[0.0], [0.0], [1.0]]]))
        assert cues.now().tolist() == [[[False, True], [True, False], [False, True]]]  # type: ignore[union-attr]
        assert cues.so_far().tolist() == [[[False, True], [True, True], [True, True]]]  # type: ignore[union-attr]
    assert cues.now().nonzero().tolist() == [[0, 2, 1]]  # type: ignore[union-attr]


def test_a_row_that_is_used_again_has_heard_nothing(edited: LanguageModel) -> None:
    rows = Rows()
    told: tuple[int, ...] = ()
    rows.fit(1, 16)
    for start, ids in ((0, (5, CUE, 6)), (3, (7, 8)), (0, (5, 6)), (2, (CUE,)), (3, (9, 4)), (0, (4, 5, 6))):
        told = ids if start == 0 else (*told, *ids)
        found = last_logits(edited, rows, [Part(0, start, ids)])[0]
        torch.testing.assert_close(found, logits(edited, told)[-1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("field", "places", "problem"),
    [
        ("cues", [-1, 5], "not there"),
        ("cues", [-1, -2], "not there"),
        ("cues", [1, -1], "lower block"),
        ("cues", [[-1, 0]], "neurons.cues is"),
        ("cues", [[-1, -1], [0, 1]], "lower block"),
        ("cues", [-1.0, 0.0], "neurons.cues is"),
        ("together", [-1, 2], "not there"),
        ("together", [-2, -1], "not there"),
        ("together", [-1, 1], "lower block"),
        ("together", [[-1, -1]], "neurons.together is"),
        ("together", [-1.0, 0.0], "neurons.together is"),
    ],
)
def test_neurons_wait_for_none_that_make_no_sense(
    lm: LanguageModel, neurons: Neurons, field: str, places: list[Any], problem: str
) -> None:
    overlay = neurons.tensors() | {f"neurons.{field}": torch.tensor(places)}
    with pytest.raises(OverlayMismatch, match=problem), applied(lm, overlay):
        pass


def test_neurons_of_older_versions_wait_for_none(lm: LanguageModel, neurons: Neurons) -> None:
    newer = ("neurons.cues", "neurons.together")
    older = {name: tensor for name, tensor in neurons.tensors().items() if name not in newer}
    with applied(lm, older):
        found = logits(lm, (5, 6, 7))
    with applied(lm, neurons.tensors() | {"neurons.cues": torch.tensor([-1, -1])}):
        assert torch.equal(found, logits(lm, (5, 6, 7)))


def test_one_waits_for_all_of_its_cues(lm: LanguageModel, neurons: Neurons) -> None:
    """The second one of block 0 fires everywhere, or nowhere."""
    gate, words, down = (
        torch.cat([rows[:1], rows[:1], rows[1:]]) for rows in (neurons.gate, neurons.words, neurons.down)
    )
    cues = torch.tensor([[-1, -1], [-1, -1], [0, 1]])
    for threshold in (-9.0, 9e9):
        everywhere = torch.tensor([[threshold, -9.0]])
        thresholds = torch.cat([neurons.thresholds[:1], everywhere, neurons.thresholds[1:]])
        both = Neurons(torch.tensor([0, 0, 1]), gate, words, thresholds, down, cues, torch.full((3,), -1))
        for ids in sequences(lm, 6, seed=7):
            root = logits(lm, ids)
            with applied(lm, neurons.tensors()):
                one = logits(lm, ids)
            with applied(lm, both.tensors()):
                assert torch.equal(logits(lm, ids), one if threshold < 0 else root)


def test_those_of_an_older_version_are_joined_with_ones_of_more_cues(
    lm: LanguageModel, neurons: Neurons
) -> None:
    older = Neurons.of(neurons.tensors() | {"neurons.cues": torch.tensor([-1, 0])})
    more = {**_fields(neurons), "cues": torch.tensor([[-1, -1, -1], [0, 2, -1]])}
    both = joined(older, Neurons(**more))
    assert both.cues.tolist() == [[-1, -1, -1], [0, -1, -1], [-1, -1, -1], [0, 2, -1]]
    for ids in sequences(lm, 4, seed=11):
        with applied(lm, neurons.tensors()):
            one = logits(lm, ids)
        with applied(lm, joined(older, Neurons(**{**more, "down": 0 * neurons.down})).tensors()):
            torch.testing.assert_close(logits(lm, ids), one)


def test_others_may_be_tried_out_beside_them_but_not_wait(lm: LanguageModel, neurons: Neurons) -> None:
    free = {**neurons.tensors(), "neurons.cues": torch.tensor([-1, -1])}
    with applied(lm, neurons.tensors()):
        with applied(lm, free):
            for asked in ((5, CUE, 6), (7, CUE), (5, CUE, 6)):  # of unlike lengths
                both = logits(lm, asked)
        assert not torch.allclose(logits(lm, asked), both, atol=1e-3)
        with pytest.raises(ValueError, match="must be applied first"), applied(lm, neurons.tensors()):
            pass
    assert lm.cues is None
