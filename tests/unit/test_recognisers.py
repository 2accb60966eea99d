"""What neurons recognise: by two conditions each, thresholds from what was not solved for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factedit.curvature import Covariance
from factedit.facts import Edit
from factedit.gated_mlp import gated_mlp
from factedit.methods import subject_keys
from factedit.methods.keys import Context
from factedit.methods.recognisers import (
    ASKED,
    IN_WORDS,
    IN_WORDS_WAITING,
    IN_WORDS_WAITING_WIDTH,
    IN_WORDS_WIDTH,
    LOWEST,
    LOWEST_WAITING,
    MARGIN,
    READ,
    WIDTH,
    Reading,
    Words,
    _in_words,
    _lowest,
    _of_words,
    recognisers,
)
from factedit.methods.relation_detectors import Asked, told_apart
from factedit.methods.subject_keys import (
    LOWER,
    NAMESAKES,
    UPPER,
    namesake_contexts,
    subject_contexts,
)
from factedit.models import LanguageModel
from factedit.prompts import answer_example
from factedit.running_text import Entering, RunningText
from factedit.specs import AnchorSpec, ConstraintSpec, MethodSpec
from factedit.task import EditTask, plan
from tests.support.tiny_models import PROMPT, tiny_model

FRANCE = Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome")


def reading(lm: LanguageModel, rows: Sequence[Sequence[float]], owners: Sequence[int]) -> Reading:
    """As if these had been read at some contexts of these owners."""
    example = answer_example(lm, FRANCE.prompt or "", "Rome")
    contexts = [Context(owner, example, 0, 1.0, bare=True) for owner in owners]
    width = lm.model.config.hidden_size
    entering = torch.zeros(len(owners), width)
    for place, row in enumerate(rows):
        entering[place, : len(row)] = torch.tensor(row)
    return Reading(contexts, entering, torch.ones(len(owners)))


def test_a_subjects_neuron_is_silent_at_the_namesakes_it_has_heard(llama: LanguageModel) -> None:
    mlp = gated_mlp(llama, 0)
    assert mlp is not None
    width = llama.model.config.hidden_size
    background = Covariance({mlp.gate: 1e-3 * torch.eye(width)}, 1)
    own, namesake, stranger = [3.0, 1.0], [3.0, 0.0], [0.0, 0.0, 2.0]
    at_own, nobody = reading(llama, [own], [0]), reading(llama, [], [])
    texts = Entering(at_own.entering[:0])

    def opened(namesakes: Reading) -> list[bool]:
        by = recognisers(llama, mlp, background, texts, at_own, nobody, 1, namesakes)
        asked = reading(llama, [own, namesake, stranger], [0, 0, 0]).entering
        return [bool(each) for each in by.opened(asked)[:, 0]]

    assert opened(nobody) == [True, True, False]
    assert opened(reading(llama, [namesake], [0])) == [True, False, False]


def test_an_answers_neuron_that_waits_goes_by_what_is_asked(llama: LanguageModel) -> None:
    mlp = gated_mlp(llama, 2)
    assert mlp is not None
    width = llama.model.config.hidden_size
    torch.manual_seed(0)
    background = Covariance({mlp.gate: torch.eye(width)}, 1)
    own = reading(llama, (3 + torch.randn(4, width)).tolist(), [0, 0, 1, 1])
    alike, nobody = reading(llama, (3 + torch.randn(2, width)).tolist(), [0, 1]), reading(llama, [], [])
    asked, texts = Asked.of(torch.randn(50, width)), Entering(torch.randn(20, width))
    elsewhere = torch.zeros(2, 50, dtype=torch.bool)

    def gates(given: Asked | None) -> torch.Tensor:
        asks = [given is not None, False]
        words = Words(own, [0, -1], nobody, alike, [0.5] * 2, [True] * 2, asks, given, elsewhere)
        return recognisers(llama, mlp, background, texts, own, alike, 2, words).gate

    by_heart, told = gates(None), gates(asked)
    used = texts.every(2).second_moment()
    assert used is not None
    rows = told_apart(asked, used, own.keys(), alike.keys(), 2, elsewhere)
    torch.testing.assert_close(told[0], (rows[0] / WIDTH).to(told.dtype))
    assert not torch.allclose(told[0], by_heart[0])
    torch.testing.assert_close(told[1], by_heart[1])  # a later token's: it need only know the place


def task_of(lm: LanguageModel, edits: list[Edit]) -> EditTask:
    method = MethodSpec(anchors=AnchorSpec(count=4, weight=1.0))
    chosen = plan(lm, method, [0, 1, 2], ConstraintSpec())

    def background(_: Sequence[str]) -> Covariance:
        raise AssertionError("nothing is to be measured for this")

    texts = RunningText.of(lm, [])
    return EditTask(lm, chosen, {}, edits, [], {}, [], method, 0, lambda _: None, background, texts)


def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What contexts are made of from now on."""
    said: list[str] = []
    real = subject_keys._context

    def hearing(lm: LanguageModel, text: str, owner: int, weight: float) -> Context:
        said.append(text)
        return real(lm, text, owner, weight)

    monkeypatch.setattr(subject_keys, "_context", hearing)
    return said


def test_a_subject_is_learnt_in_small_and_capital_letters_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spells = tiny_model(tmp_path, "qwen2")  # by bytes: it knows no unknown token
    said = heard(monkeypatch)
    found = subject_contexts(task_of(spells, [FRANCE]), [[FRANCE]], [])
    weight = {text: context.weight for context, text in zip(found, said, strict=True)}
    assert weight["the capital of france"] == pytest.approx(LOWER)
    assert weight["THE CAPITAL OF FRANCE"] == pytest.approx(UPPER)
    assert sum(context.weight for context in found) == pytest.approx(1)


def test_a_spelling_that_the_model_has_no_token_for_is_not_learnt(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = heard(monkeypatch)
    found = subject_contexts(task_of(llama, [FRANCE]), [[FRANCE]], [])
    assert "The capital of France" in said
    assert not any("france" in text or "FRANCE" in text for text in said)
    assert sum(context.weight for context in found) == pytest.approx(1)


def test_namesakes_stand_where_the_subject_does(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = Edit(id="2", subject="Crown Bridge", prompt="The wumpus of Crown Bridge is", new_object="Rome")
    said = heard(monkeypatch)
    found = namesake_contexts(task_of(llama, [FRANCE, bridge]), [[bridge], [FRANCE]])
    assert sorted({context.edit for context in found}) == [0, 1] and len(found) == len(said)
    of_bridge = [text for text, context in zip(said, found, strict=True) if context.edit == 0]
    assert NAMESAKES / 2 < len(of_bridge) <= NAMESAKES
    assert all(text.endswith(" Bridge") for text in of_bridge)
    assert NAMESAKES / 3 < sum("wumpus" in text for text in of_bridge) < len(of_bridge)
    assert not any("Crown Bridge" in text for text in of_bridge)


def test_the_lowest_threshold_is_above_what_it_is_tried_on(llama: LanguageModel) -> None:
    detect, known = torch.eye(2).double(), torch.tensor([[1.0, 1.0], [1.0, 0.0]]).double()
    example = answer_example(llama, PROMPT.format("France"), "Rome")
    rows = torch.tensor([[0.1, 0.5], [0.55, 0.1], [0.6, 0.2], [0.3, 0.62]])
    contexts = [Context(owner, example, 0, 1.0, bare=True) for owner in (0, 0, 0, 1)]
    tried = Reading(contexts, rows, torch.ones(4))
    texts = torch.tensor([[0.45, 0.0], [0.2, 0.65]])  # the second detector's words are only at the first

    nothing = Reading([], torch.zeros(0, 2), torch.ones(0))

    def lowest(mistaken: float, *, waits: bool = False) -> list[float]:
        words = Words(tried, [0, 1], nothing, tried, [mistaken] * 2, [waits, False])
        return [float(each) for each in _lowest(detect, known, texts, words)]

    # Two of three are above 0.4; of the second's own, none counts, its words being not there.
    assert lowest(0.0) == pytest.approx([0.6 + MARGIN, LOWEST])
    assert lowest(0.4) == pytest.approx([0.55 + MARGIN, LOWEST])
    assert lowest(0.7) == pytest.approx([0.45 + MARGIN, LOWEST])
    # What waits for its subject may fire in any text, but not at what else is said of it.
    assert lowest(0.4, waits=True) == pytest.approx([0.55 + MARGIN, LOWEST])
    assert lowest(1.0, waits=True) == pytest.approx([LOWEST_WAITING, LOWEST])
    # What has only to know what is asked begins higher; a later token's neuron need only know the place.
    asked = Asked(rows.double(), detect[0], detect)
    words = Words(tried, [0, -1], nothing, tried, [1.0] * 2, [True, True], [True, False], asked)
    for read, wanted in ([], ASKED), ([True, True], READ):  # less surely, where it has been read below
        found = _lowest(detect, known, texts, replace(words, read=read))
        assert [float(each) for each in found] == pytest.approx([wanted, LOWEST_WAITING])
    # Where it may never fire, none does, be its words there or not needed.
    never = Reading(contexts[2:], torch.tensor([[0.5, 0.3], [0.6, 0.55]]), torch.ones(2))
    for groups, wanted in (([0, 1], LOWEST), ([0, -1], 0.55 + MARGIN)):
        words = Words(tried, groups, never, nothing, [1.0] * 2, [True] * 2)
        first, second = _lowest(detect, known * torch.tensor([[1.0], [float(groups[1] > 0)]]), texts, words)
        assert float(first) == pytest.approx(0.5 + MARGIN)
        assert float(second) == pytest.approx(max(wanted, 0.55 + MARGIN))


def test_who_fires_in_any_words_is_told_none(llama: LanguageModel) -> None:
    example = answer_example(llama, PROMPT.format("France"), "Rome")
    at = Reading([Context(0, example, 0, 1.0, bare=True)], torch.tensor([[1.0, 0.0]]), torch.ones(1))
    nothing = Reading([], torch.zeros(0, 2), torch.ones(0))
    for mine, wanted in (
        ([0, 0], [IN_WORDS_WAITING, IN_WORDS]),
        ([0, -1], [IN_WORDS_WAITING, -1.0]),
        ([-1, -1], [-1.0, -1.0]),
    ):
        words = Words(at if 0 in mine else nothing, mine, nothing, nothing, [0.1] * 2, [True, mine[1] < 0])
        rows = _of_words(torch.eye(2).double(), torch.zeros(0, 2), words, torch.ones(2, 2).double())
        least, rise = _in_words(words, rows)
        assert least.tolist() == wanted
        assert rise.tolist() == [IN_WORDS_WAITING_WIDTH if waits else IN_WORDS_WIDTH for waits in words.waits]
        assert [bool(row.any()) for row in rows] == [group == 0 for group in mine]
