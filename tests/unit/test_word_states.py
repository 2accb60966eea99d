"""What is known of the root where names' words are read tells which probes a version leaves alone, unread."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factedit import word_states
from factedit.added_neurons import Neurons
from factedit.checkpoint_store import CheckpointStore
from factedit.models import LanguageModel
from factedit.overlay import OverlayMismatch
from factedit.prompts import prompt_ids
from factedit.root_answers import RootAnswers
from factedit.scoring import score_probes
from factedit.silence import silent, silent_by_words
from factedit.trees import Ids
from factedit.word_states import WordStates, reading_block
from tests.support.tiny_models import COUNTRIES, PROMPT
from tests.support.tiny_neurons import blind_model, probes, sequences, steep, waiting_neurons
from workers import kept

CUE = "Germany"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return blind_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def neurons(lm: LanguageModel) -> Neurons:
    return steep(waiting_neurons(lm, prompt_ids(lm, CUE)[0]))


def asked(lm: LanguageModel, count: int = 60) -> dict[str, Sequence[Ids]]:
    """Two sequences that begin alike to a key."""
    return {
        str(n): [ids, (*ids[:2], 9)] for n, ids in enumerate(sequences(lm, prompt_ids(lm, CUE)[0], count))
    }


class Read:
    """Counts the keys of each reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[int] = []
        read = word_states._read

        def counting(lm: LanguageModel, block: int, wanted: Mapping[str, Sequence[Ids]]) -> object:
            self.keys.append(len(wanted))
            return read(lm, block, wanted)

        monkeypatch.setattr("factedit.word_states._read", counting)


def test_it_tells_what_reading_would_and_reads_once(
    lm: LanguageModel, neurons: Neurons, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, wanted, overlay = Read(monkeypatch), asked(lm), neurons.tensors()
    words = WordStates(0)
    found = silent_by_words(lm, overlay, wanted, words)
    assert found == {key: all(silent(lm, overlay, each)) for key, each in wanted.items()}
    assert 20 < sum(found.values()) < 40 and words.grown
    again = WordStates.unpacked(lm, 0, words.packed())
    assert silent_by_words(lm, overlay, wanted, again) == found and not again.grown
    more = {**wanted, "new": [(7, 8)]}
    assert silent_by_words(lm, overlay, more, again) == {**found, "new": True} and again.grown
    assert read.keys == [60, 1]


def test_what_says_something_where_words_are_read_is_not_silent(lm: LanguageModel, neurons: Neurons) -> None:
    reader = Neurons.of({**neurons.tensors(), "neurons.cues": torch.full_like(neurons.cues, -1)})
    assert reader is not None
    speaking = reader.of_block(0)
    speaking = replace(speaking, down=torch.ones_like(speaking.down))
    found = silent_by_words(lm, speaking.tensors(), asked(lm), WordStates(0))
    assert found == {key: all(silent(lm, speaking.tensors(), each)) for key, each in asked(lm).items()}
    assert 20 < sum(found.values()) < 40


def test_of_no_neurons_and_of_no_probes_there_is_nothing_to_tell(lm: LanguageModel, neurons: Neurons) -> None:
    assert silent_by_words(lm, {}, asked(lm, 2), WordStates(0)) == {"0": True, "1": True}
    assert silent_by_words(lm, neurons.tensors(), {}, WordStates(0)) == {}
    with pytest.raises(OverlayMismatch):
        silent_by_words(lm, {"neurons.cues": neurons.cues}, asked(lm, 2), WordStates(0))


def test_the_block_is_that_of_all_neurons_that_wait_for_nothing(neurons: Neurons) -> None:
    assert reading_block(neurons.tensors()) == 0
    assert reading_block({}) is None
    anywhere = replace(neurons, cues=torch.full_like(neurons.cues, -1))
    assert reading_block(anywhere.tensors()) is None


def test_outcomes_are_the_same_with_it_and_it_is_kept_in_the_store(
    lm: LanguageModel, neurons: Neurons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root = CheckpointStore(tmp_path / "store"), RootAnswers()
    score_probes(lm, {}, probes(), root=root)
    overlay = neurons.tensors()
    expected = score_probes(lm, overlay, probes(), root=root)
    read = Read(monkeypatch)
    for _ in range(2):
        with kept.word_states(store, "root", lm, {}, overlay) as words:
            assert words is not None
            assert score_probes(lm, overlay, probes(), root=root, words=words) == expected
    assert read.keys == [len(probes())]
    with kept.word_states(store, "another root", lm, overlay) as words:
        assert words is not None and not words._states


def test_it_is_of_no_use_to_versions_that_read_words_elsewhere(
    lm: LanguageModel, neurons: Neurons, tmp_path: Path
) -> None:
    elsewhere = Neurons.of({**neurons.tensors(), "neurons.cues": torch.full_like(neurons.cues, -1)})
    assert elsewhere is not None
    upper = elsewhere.of_block(int(neurons.blocks.max())).tensors()
    with kept.word_states(CheckpointStore(tmp_path / "s"), "root", lm, neurons.tensors(), upper) as words:
        assert words is None
    known = RootAnswers()
    score_probes(lm, {}, probes(), root=known)
    with_words = score_probes(lm, upper, probes(), root=known, words=WordStates(0))
    assert with_words == score_probes(lm, upper, probes(), root=known)


def test_so_much_is_kept_and_no_more(
    lm: LanguageModel, neurons: Neurons, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, wanted = WordStates(0), asked(lm)
    monkeypatch.setattr("factedit.word_states.MAX_BYTES", 1000)
    found = silent_by_words(lm, neurons.tensors(), wanted, words)
    assert 0 < words.packed()["states"].nbytes <= 1000
    assert silent_by_words(lm, neurons.tensors(), wanted, words) == found


def test_what_is_kept_of_another_model_or_in_another_form_is_forgotten(lm: LanguageModel) -> None:
    words = WordStates(0)
    text = PROMPT.format(COUNTRIES[0])
    words.fired(lm, {"a": [tuple(prompt_ids(lm, text))]}, waiting_neurons(lm, 5))
    packed = words.packed()
    wide = {**packed, "states": packed["states"].repeat(1, 2)}
    for other in (
        None,
        {},
        wide,
        {**packed, "states": packed["states"].double()},
        {"states": packed["states"]},
    ):
        assert not WordStates.unpacked(lm, 0, other)._states
    assert WordStates.unpacked(lm, 0, packed)._states.keys() == {"a"}
