"""Running text of a model's own: the same every time, and told apart by whom it speaks of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factedit.facts import Edit
from factedit.models import LanguageModel
from factedit.own_text import BESIDE, TEXTS, noisy, own_texts, silent_texts, speaking_of
from tests.support.tiny_models import COUNTRIES, tiny_model


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("model"), "llama")


FRANCE = Edit(id="1", subject="France", prompt="France is", new_object="far")


def test_a_model_writes_the_same_twice_and_leaves_the_callers_chance_alone(lm: LanguageModel) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = own_texts(lm)
    assert torch.equal(torch.rand(1), expected)
    assert first == own_texts(lm) and len(first) == TEXTS and len(set(first)) > 1
    assert first != own_texts(lm, seed=1)


def test_a_masked_model_writes_nothing(tmp_path: Path) -> None:
    assert own_texts(tiny_model(tmp_path, "bert")) == []


def test_texts_that_speak_of_an_edited_subject_are_told_apart() -> None:
    texts = ["In FRANCE it rains.", "In Spain it does not."]
    assert speaking_of(texts, [FRANCE]) == texts[:1]
    assert speaking_of(texts, []) == []
    assert speaking_of(texts, [replace(FRANCE, subject="pai")]) == []


def test_neurons_are_silent_in_odd_texts_and_in_the_background_too(lm: LanguageModel) -> None:
    text = "In Spain it does not rain, and nobody there has ever seen a cloud or heard of one."
    silent = silent_texts(lm, [text])
    assert silent[0] == text and silent[1] == noisy(lm, [text])[0] and len(silent) == 2 + BESIDE


def test_some_tokens_of_a_noisy_text_are_others(lm: LanguageModel) -> None:
    texts = [" ".join(COUNTRIES * 10)] * 2
    first, second = noisy(lm, texts)
    assert [first, second] == noisy(lm, texts) and first != second
    before, after = texts[0].split(), first.split()
    same = sum(word in COUNTRIES for word in after)
    assert 0.5 * len(before) < same < len(before)
