"""Continuations of one prompt, read in one pass, are as likely as each alone."""

import random
from pathlib import Path

import pytest
import torch

from factedit import branches, ranking
from factedit.branches import can_branch, totals
from factedit.facts import Probe
from factedit.models import LanguageModel
from factedit.scoring import score_probes
from tests.support.tiny_models import CAUSAL, CITIES, COUNTRIES, PROMPT, tiny_model

USUAL = sorted(set(CAUSAL) - {"gemma2"})
NAMES = (*CITIES, "New York", "New Oslo", "people in", "people of Rome", "York New")


@pytest.fixture(scope="module", params=USUAL)
def usual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp(request.param), request.param)


def alone(lm: LanguageModel, prompt: tuple[int, ...], branch: tuple[int, ...]) -> float:
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([(*prompt, *branch)])).logits[0]
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(rows.gather(1, torch.tensor(branch)[:, None]).sum())


@pytest.mark.parametrize("room", [64, 3])
def test_each_continuation_is_as_likely_as_alone(
    usual: LanguageModel, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branches, "LENGTH", room)
    assert can_branch(usual)
    chance = random.Random(0)
    size = usual.model.config.vocab_size

    def some(longest: int) -> tuple[int, ...]:
        return tuple(chance.randrange(size) for _ in range(chance.randint(1, longest)))

    prompts = [some(9) for _ in range(7)]
    asked = [[some(4) for _ in range(chance.randint(0, 5))] for _ in prompts]
    asked[0] = [(5, 6, 7), (5, 6, 8), (5,), (5, 6, 7)]
    found = totals(usual, prompts, asked, batch_size=3)
    for prompt, each, scores in zip(prompts, asked, found, strict=True):
        assert scores == pytest.approx([alone(usual, prompt, branch) for branch in each], abs=1e-3)


def test_ranks_are_the_same_where_a_model_reads_continuations_one_by_one(
    usual: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = [
        Probe(f"{i} {name}", PROMPT.format(country), name, (), NAMES)
        for i, country in enumerate(COUNTRIES)
        for name in NAMES
    ]
    together = score_probes(usual, {}, probes)
    assert {outcome.ranked_first for outcome in together} == {True, False}
    monkeypatch.setattr(ranking, "can_branch", lambda lm: False)
    assert score_probes(usual, {}, probes) == together


def test_masked_models_do_not_branch(tmp_path: Path) -> None:
    assert not can_branch(tiny_model(tmp_path, "bert"))
