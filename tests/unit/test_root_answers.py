"""Where none of a version's neurons can speak its answers are the root's, and need not be asked for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit import greedy, root_answers
from factedit.added_neurons import FIELDS, Neurons
from factedit.forward import target_logits
from factedit.models import LanguageModel
from factedit.outcomes import ProbeOutcome
from factedit.overlay import Overlay, OverlayMismatch, applied
from factedit.prompts import Example, collate, prompt_ids
from factedit.root_answers import RootAnswers
from factedit.scoring import score_probes
from factedit.silence import _any_speaks, silent
from tests.support.tiny_models import COUNTRIES, PROMPT, SPECIAL, tiny_model
from tests.support.tiny_neurons import blind_model, probes, sequences, steep, waiting_neurons

CUE = "Germany"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return blind_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def neurons(lm: LanguageModel) -> Neurons:
    """As steep as those that the library makes."""
    return steep(waiting_neurons(lm, cue(lm)))


def cue(lm: LanguageModel) -> int:
    return prompt_ids(lm, CUE)[0]


@torch.no_grad()
def logits(lm: LanguageModel, overlay: Overlay, ids: tuple[int, ...]) -> Tensor:
    example = Example(ids, tuple(range(len(ids))), (0,) * len(ids))
    with applied(lm, overlay):
        return target_logits(lm, collate(lm, [example], [0]))


def test_where_a_version_is_silent_it_says_what_the_root_does(lm: LanguageModel, neurons: Neurons) -> None:
    asked, overlay = sequences(lm, cue(lm), 60), neurons.tensors()
    found = silent(lm, overlay, asked)
    same = [torch.equal(logits(lm, overlay, ids), logits(lm, {}, ids)) for ids in asked]
    assert found == same
    assert 20 < sum(found) < 40


def test_nobody_reads_on_to_see_that_neurons_have_nothing_to_wait_for(
    lm: LanguageModel, neurons: Neurons
) -> None:
    blocks: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: blocks.append(number))
        for number, block in enumerate(lm.blocks)
    ]
    silent(lm, neurons.tensors(), sequences(lm, cue(lm), 8))
    waits_for_nothing = replace(neurons, cues=torch.tensor([-1, -1]))
    low = list(blocks)
    silent(lm, waits_for_nothing.tensors(), sequences(lm, cue(lm), 8))
    for hook in hooks:
        hook.remove()
    assert set(low) == {0}
    assert set(blocks) == {0, 1}


def test_what_nearly_fires_is_not_called_silent(lm: LanguageModel, neurons: Neurons) -> None:
    ids = (7, cue(lm), 8)
    nearly = torch.tensor([[10.2, -9.0], [-9.0, -9.0]])  # at the cue it is 10
    overlay = replace(neurons, thresholds=nearly).tensors()
    assert torch.equal(logits(lm, overlay, ids), logits(lm, {}, ids))
    assert silent(lm, overlay, [ids, (7, 8)]) == [False, True]


def test_only_neurons_can_be_silent_and_a_root_always_is(lm: LanguageModel, neurons: Neurons) -> None:
    name = lm.block_tensors(2, "mlp_out")[0]
    assert silent(lm, {**neurons.tensors(), name: lm.tensors[name].data}, [(7, 8)]) == [False]
    assert silent(lm, {}, [(7, 8)]) == [True]


def chain(*, cues: list[list[int]], speaks: list[int]) -> Neurons:
    """Four of them, the first two of which read in block 0; the others wait, in blocks 1 and 2."""
    zeros, down = torch.zeros(4, 3), torch.zeros(4, 3)
    down[speaks] = 1.0
    blocks, nobody = torch.tensor([0, 0, 1, 2]), torch.full((4,), -1)
    return Neurons(blocks, zeros, zeros, torch.zeros(4, 2), down, torch.tensor(cues), nobody)


@pytest.mark.parametrize(
    ("cues", "speaks", "awake", "wanted"),
    [
        ([[-1, -1], [-1, -1], [0, -1], [2, -1]], [3], [True, False], True),  # through one that waits itself
        ([[-1, -1], [-1, -1], [0, -1], [2, -1]], [3], [False, True], False),
        ([[-1, -1], [-1, -1], [0, 1], [2, -1]], [2, 3], [True, False], False),  # two are waited for
        ([[-1, -1], [-1, -1], [0, 1], [2, -1]], [2, 3], [True, True], True),
        ([[-1, -1], [-1, -1], [0, -1], [1, -1]], [3], [True, False], False),  # what has heard says nothing
        ([[-1, -1], [-1, -1], [0, -1], [1, -1]], [0], [True, False], True),
    ],
)
def test_who_waits_may_speak_if_all_that_it_waits_for_might(
    cues: list[list[int]], speaks: list[int], awake: list[bool], wanted: bool
) -> None:
    heard = torch.tensor([[*awake, False, False], [False] * 4])
    assert _any_speaks(chain(cues=cues, speaks=speaks), heard, depth=1).tolist() == [wanted, False]


def test_an_overlay_must_fit_and_may_have_no_neurons(lm: LanguageModel, neurons: Neurons) -> None:
    none = Neurons(*(getattr(neurons, field)[:0] for field in FIELDS))
    assert silent(lm, none.tensors(), [(7, 8)]) == [True]
    with pytest.raises(OverlayMismatch):
        silent(lm, {"neurons.cues": neurons.cues}, [(7, 8)])


# Outcomes


def test_outcomes_are_the_same_whatever_is_known_of_the_root(lm: LanguageModel, neurons: Neurons) -> None:
    plain, overlay = score_probes(lm, neurons.tensors(), probes()), neurons.tensors()
    known = RootAnswers()
    root = score_probes(lm, {}, probes(), root=known)
    assert known.grown
    assert root != plain
    again = RootAnswers.unpacked(known.packed())
    told: list[tuple[int, int]] = []
    found = score_probes(lm, overlay, probes(), root=again, progress=lambda *done: told.append(done))
    assert found == plain
    assert told[0] == (5, 6)
    assert told[-1] == (6, 6)
    assert not again.grown


def test_what_the_root_has_answered_is_not_asked_again(
    lm: LanguageModel, neurons: Neurons, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, asked = RootAnswers(), []
    root = score_probes(lm, {}, probes(), root=known)
    usual = greedy.checked

    def checked(lm: LanguageModel, prompts: list[tuple[int, ...]], *rest: object, **more: object) -> object:
        asked.append(prompts)
        return usual(lm, prompts, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(greedy, "checked", checked)
    assert score_probes(lm, {}, probes(), root=known) == root
    assert asked == [[]]
    score_probes(lm, neurons.tensors(), probes(), root=known)
    assert asked[1:] == [[tuple(prompt_ids(lm, PROMPT.format(CUE)))]]
    other = [replace(probe, aliases=("Oslo",)) for probe in probes()]
    score_probes(lm, {}, other, root=known)
    assert len(asked[2]) == 6


def test_only_the_root_is_learnt_from(lm: LanguageModel, neurons: Neurons) -> None:
    known = RootAnswers()
    score_probes(lm, neurons.tensors(), probes(), root=known)
    assert not known.grown


@pytest.mark.parametrize("where", ["answer", "draft"])
def test_all_that_was_read_counts(lm: LanguageModel, where: str) -> None:
    """A neuron that hears a word of the answer, or of a draft that was wrong, may change what follows."""
    known = RootAnswers()
    root = score_probes(lm, {}, probes(), root=known)
    tried = 0
    for place, (probe, outcome) in enumerate(zip(probes(), root, strict=True)):
        draft, answer = prompt_ids(lm, probe.object), prompt_ids(lm, outcome.answer)
        elsewhere = {*prompt_ids(lm, probe.prompt), *(answer if where == "draft" else draft)}
        words = {token for token in (draft if where == "draft" else answer) if token >= len(SPECIAL)}
        for token in words - elsewhere:
            speaking = steep(waiting_neurons(lm, token)).tensors()
            assert place not in known.of(lm, speaking, probes())
            tried += 1
    assert tried


def test_the_last_ones_are_kept(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_answers, "MOST", 4)
    known = RootAnswers()
    score_probes(lm, {}, probes(), root=known)
    assert sorted(known.of(lm, {}, probes())) == [2, 3, 4, 5]


def test_candidates_that_wake_a_neuron_count(lm: LanguageModel, neurons: Neurons) -> None:
    """A neuron that speaks after a rival's first word makes that rival more or less likely."""
    rivals = "New York", f"{CUE} York"
    asked = [replace(probe, object=rivals[0], candidates=rivals) for probe in probes()]
    unspelt, known = [replace(probe, candidates=()) for probe in asked], RootAnswers()
    york = lm.tensors["model.embed_tokens.weight"].data[prompt_ids(lm, "York")]
    overlay = replace(neurons, down=torch.cat([0 * york, -30 * york])).tensors()
    root = score_probes(lm, {}, asked, root=known)
    score_probes(lm, {}, unspelt, root=known)
    plain = score_probes(lm, overlay, asked)
    moved = {place for place in range(6) if plain[place] != root[place]}
    assert len(known.of(lm, overlay, unspelt)) == 5
    assert moved - {COUNTRIES.index(CUE)}
    assert not moved & known.of(lm, overlay, asked).keys()
    assert score_probes(lm, overlay, asked, root=known) == plain


def test_changed_weights_have_nothing_of_the_root(lm: LanguageModel) -> None:
    name, known = lm.block_tensors(1, "mlp_out")[0], RootAnswers()
    changed = {name: lm.tensors[name].data + 3 * torch.randn_like(lm.tensors[name])}
    score_probes(lm, {}, probes(), root=known)
    assert score_probes(lm, changed, probes(), root=known) == score_probes(lm, changed, probes())
    empty = RootAnswers()
    score_probes(lm, changed, probes(), root=empty)
    assert not empty.grown


def test_what_is_not_of_this_form_is_as_good_as_nothing() -> None:
    for damaged in (None, {}, {"json": torch.zeros(3, dtype=torch.uint8)}, {"json": _as_tensor('{"a": 1}')}):
        assert RootAnswers.unpacked(damaged).packed()["json"].numel() == len("{}")


def _as_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def test_a_masked_model_is_scored_as_ever(tmp_path: Path) -> None:
    bert, known = tiny_model(tmp_path, "bert"), RootAnswers()
    found: list[ProbeOutcome] = score_probes(bert, {}, probes(), root=known)
    assert found == score_probes(bert, {}, probes())
    assert not known.grown
