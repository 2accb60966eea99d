"""The benchmark of scoring: what it compares is the same where it has to be."""

from pathlib import Path

import torch

from benchmarks.scoring_rate import measure, report
from factedit.added_neurons import Neurons
from factedit.facts import Probe
from factedit.models import load_model
from tests.support.tiny_models import CITIES, COUNTRIES, PROMPT, WIDTH, tiny_model


def test_it_tells_that_the_unchanged_version_and_the_known_states_changed_no_answer(tmp_path: Path) -> None:
    tiny_model(tmp_path, "llama")
    lm = load_model(tmp_path, device="cpu", dtype=torch.bfloat16)
    probes = [Probe(str(i), PROMPT.format(c), CITIES[i], (), CITIES) for i, c in enumerate(COUNTRIES)]
    neuron = Neurons(
        blocks=torch.tensor([1]),
        gate=torch.zeros(1, WIDTH, dtype=torch.bfloat16),
        words=torch.zeros(1, WIDTH, dtype=torch.bfloat16),
        thresholds=torch.tensor([[9.0, -9.0]], dtype=torch.bfloat16),
        down=torch.ones(1, WIDTH, dtype=torch.bfloat16),
        cues=torch.tensor([[-1]]),
        together=torch.tensor([-1]),
    )
    found = measure(lm, probes, [1], neuron.tensors())
    assert found["unchanged_same"] == len(probes) > found["edited_same"]
    assert found["same_with_states_known"]
    assert [seconds > 0 for _, seconds in found["ways"]] == [True] * 8
    assert found["written_left"] == 0
    assert found["written_same_with_root_known"]
    assert report(found).count("just the same") == 2
