"""What a neuron fires at: detectors and thresholds, against cases worked out by hand."""

from collections.abc import Sequence

import pytest
import torch

from factedit.added_neurons import fire
from factedit.methods.detectors import (
    AT_LEAST,
    AT_MOST,
    RIDGE,
    TEXTS,
    WEIGHT,
    Keys,
    detectors,
    silent_at,
)
from factedit.methods.recognisers import THRESHOLD, WIDTH


def keys_of(rows: Sequence[Sequence[float]], owner: Sequence[int], weight: float = 1.0) -> Keys:
    weights = torch.full((len(owner),), weight)
    return Keys(torch.tensor(rows).reshape(len(owner), -1), torch.tensor(owner, dtype=torch.long), weights)


def nobody(width: int) -> Keys:
    return Keys(torch.empty(0, width), torch.empty(0, dtype=torch.long), torch.empty(0))


def test_a_detector_of_orthogonal_keys_is_the_one_by_hand() -> None:
    # One key each: w = key * weight / (weight * |key|^2 + WEIGHT * (1 + RIDGE)), and nothing of the other's.
    keys = keys_of([[20.0, 0.0, 0.0], [0.0, 30.0, 0.0]], [0, 1], 0.5)
    found = detectors(torch.eye(3), keys, nobody(3), torch.empty(0, 3), 2)
    ridge = WEIGHT * (1 + RIDGE)
    expected = torch.tensor([[10 / (200 + ridge), 0, 0], [0, 15 / (450 + ridge), 0]]).double()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)


def test_a_key_of_nobody_is_left_alone() -> None:
    keys = keys_of([[100.0, 0.0], [100.0, 100.0]], [-1, 0])
    (found,) = detectors(1e-6 * torch.eye(2), keys, nobody(2), torch.empty(0, 2), 1).float()
    said = keys.rows @ found
    torch.testing.assert_close(said, torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)


def test_a_detector_tells_its_subject_from_names_that_sound_like_it() -> None:
    subject, alike = keys_of([[10.0, 0.0]], [0]), keys_of([[10.0, 3.0]], [0])
    (before,) = detectors(0.1 * torch.eye(2), subject, nobody(2), torch.empty(0, 2), 1).float()
    (after,) = detectors(0.1 * torch.eye(2), subject, alike, torch.empty(0, 2), 1).float()
    assert float(alike.rows @ before) > 0.9
    assert float(alike.rows @ after) <= AT_MOST and float(subject.rows @ after) >= AT_LEAST


def test_a_detector_is_silent_in_running_text() -> None:
    subject, texts = keys_of([[10.0, 0.0]], [0]), torch.tensor([[9.0, 4.0], [0.0, 1.0]])
    (before,) = detectors(0.1 * torch.eye(2), subject, nobody(2), texts[1:], 1).float()
    (after,) = detectors(0.1 * torch.eye(2), subject, nobody(2), texts, 1).float()
    assert float(texts[0] @ before) > AT_MOST
    assert float(texts[0] @ after) <= AT_MOST and float(subject.rows[0] @ after) >= AT_LEAST


@pytest.mark.parametrize(("owner", "silent"), [(-1, [0, 1]), (1, [1])])
def test_a_name_silences_its_own_detector_or_all(owner: int, silent: list[int]) -> None:
    subjects = keys_of([[10.0, 0.0, 0.0], [0.0, 10.0, 0.0]], [0, 1])
    alike = keys_of([[9.0, 9.0, 2.0]], [owner])
    found = detectors(0.1 * torch.eye(3), subjects, alike, torch.empty(0, 3), 2).float()
    answering = (alike.rows @ found.T > AT_MOST).squeeze(0)
    assert [n for n in range(2) if not answering[n]] == silent


def test_a_neuron_answers_alike_however_clearly_its_subject_is_recognised() -> None:
    one, always, thresholds = (
        torch.ones(1, 1) / WIDTH,
        torch.zeros(1, 1),
        torch.tensor([[THRESHOLD / WIDTH, -1]]),
    )
    said = torch.tensor(
        [[-3.0], [0.0], [THRESHOLD], [THRESHOLD + WIDTH / 2], [THRESHOLD + WIDTH], [1.0], [3.0]]
    )
    fires = fire(said, one, always, thresholds)[:, 0]
    torch.testing.assert_close(fires, torch.tensor([0, 0, 0, 0.5, 1, 1, 1]), atol=1e-5, rtol=0)
    not_its_words = torch.tensor([[THRESHOLD / WIDTH, 0.0]])
    assert fire(said, one, always, not_its_words).abs().sum() == 0


def test_what_is_silent_at_weighs_texts_and_prompts() -> None:
    texts = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    found = silent_at(torch.eye(2), texts)
    expected = (1 - TEXTS) * torch.eye(2) + TEXTS * torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(found, expected.double())
    torch.testing.assert_close(silent_at(torch.eye(2), None), torch.eye(2).double())
