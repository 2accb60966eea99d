"""Running text of a model's own: the same every time, and told apart by whom it speaks of."""

from dataclasses import replace
from pathlib import Path

import torch

from factedit.facts import Edit
from factedit.own_text import BESIDE, TEXTS, own_texts, silent_texts, speaking_of
from tests.support.tiny_models import tiny_model

FRANCE = Edit(id="1", subject="France", prompt="France is", new_object="far")


def test_a_model_writes_the_same_twice_and_leaves_the_callers_chance_alone(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "llama")
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


def test_neurons_are_silent_in_the_background_too() -> None:
    silent = silent_texts(["In Spain it does not."])
    assert silent[0] == "In Spain it does not." and len(silent) == 1 + BESIDE
