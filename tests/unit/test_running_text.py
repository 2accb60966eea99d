"""What enters matrices in running text is read once, and with an overlay only where it is another."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.added_neurons import Neurons, joined
from factedit.checkpoint_store import CheckpointStore
from factedit.curvature import inputs_of
from factedit.editing import edit
from factedit.facts import Edit
from factedit.gated_mlp import gated_mlp
from factedit.methods.auto import gates_read
from factedit.models import LanguageModel, load_model
from factedit.overlay import applied
from factedit.own_text import silent_texts
from factedit.prompts import prompt_ids
from factedit.relations import builtin_catalogue
from factedit.running_text import RunningText
from factedit.specs import ConstraintSpec, MethodSpec
from factedit.task import plan
from factedit.toy import toy_facts, write_toy_model
from tests.support.tiny_models import COUNTRIES, PROMPT
from workers.background import Background
from workers.registration import measure_background

TEXTS = [PROMPT.format(country) for country in COUNTRIES[:4]]


def gate_of(lm: LanguageModel, block: int) -> str:
    mlp = gated_mlp(lm, block)
    assert mlp is not None
    return mlp.gate


class Counted:
    """Counts the texts of each reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.read: list[int] = []

        def counting(
            lm: LanguageModel, names: Sequence[str], texts: Sequence[str]
        ) -> dict[str, list[Tensor]]:
            self.read.append(len(texts))
            return inputs_of(lm, names, texts)

        monkeypatch.setattr(f"{module}.inputs_of", counting)


def neuron_at_the_end_of(lm: LanguageModel, text: str) -> dict[str, Tensor]:
    """An overlay: a neuron of the first block that fires where this text ends, and at no other text."""
    name = gate_of(lm, 0)
    rows = inputs_of(lm, [name], TEXTS)[name]
    place = TEXTS.index(text)
    every, own = torch.cat(rows).double(), rows[place][-1].double()
    others = torch.cat([each for at, each in enumerate(rows) if at != place]).double()
    wanted = torch.cat([torch.ones(1), torch.full((len(others),), 0.2)]).double()  # all say something
    gate = (torch.linalg.pinv(torch.cat([own[None], others])) @ wanted).to(every.dtype)
    said = [float((each.double() @ gate).max()) for each in rows]
    assert min(said) > 0 and [most > 0.5 for most in said] == [at == place for at in range(len(rows))]
    dtype = lm.tensors[name].dtype
    one = gate.to(dtype)[None]
    return Neurons(
        torch.tensor([0]),
        one,
        one,
        torch.full((1, 2), 0.5, dtype=dtype),
        5 * torch.ones_like(one),
        torch.tensor([-1]),
        torch.tensor([-1]),
    ).tensors()


def test_texts_come_back_in_their_order(llama: LanguageModel) -> None:
    name = gate_of(llama, 1)
    texts = [*TEXTS, "A much longer text than all the others of them, and so read by itself."]
    together, alone = (
        inputs_of(llama, [name], texts)[name],
        [inputs_of(llama, [name], [t])[name] for t in texts],
    )
    assert [len(rows) for rows in together] == [len(prompt_ids(llama, text)) for text in texts]
    for rows, (own,) in zip(together, alone, strict=True):
        torch.testing.assert_close(rows, own, rtol=1e-4, atol=1e-5)


def test_only_texts_that_wake_a_neuron_are_read_anew(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay, names = neuron_at_the_end_of(llama, TEXTS[2]), [gate_of(llama, 2)]
    with applied(llama, overlay):
        expected = torch.cat(inputs_of(llama, names, TEXTS)[names[0]])
    plain = torch.cat(inputs_of(llama, names, TEXTS)[names[0]])
    assert not torch.equal(plain, expected)
    counted = Counted(monkeypatch, "factedit.running_text")
    found = RunningText.of(llama, TEXTS).entering(llama, names, overlay)
    torch.testing.assert_close(found[names[0]].rows, expected, rtol=1e-4, atol=1e-5)
    assert counted.read == [len(TEXTS), 1]


def test_one_that_only_reads_wakes_no_text_but_for_whom_it_is_a_cue(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, found = [gate_of(llama, 2)], Neurons.of(neuron_at_the_end_of(llama, TEXTS[2]))
    assert found is not None
    mute = Neurons.of({**found.tensors(), "neurons.down": 0 * found.down})
    everywhere = {**found.tensors(), "neurons.thresholds": torch.full_like(found.thresholds, -9.0)}
    waiting = {**everywhere, "neurons.blocks": torch.tensor([1]), "neurons.cues": torch.tensor([[0]])}
    speaking = Neurons.of(waiting)
    assert mute is not None and speaking is not None
    counted = Counted(monkeypatch, "factedit.running_text")
    text = RunningText.of(llama, TEXTS)
    plain = text.entering(llama, names, {})[names[0]].rows
    assert torch.equal(text.entering(llama, names, mute.tensors())[names[0]].rows, plain)
    assert counted.read == [len(TEXTS)] * 2
    overlay = joined(mute, speaking).tensors()
    with applied(llama, overlay):
        expected = torch.cat(inputs_of(llama, names, TEXTS)[names[0]])
    assert not torch.equal(expected, plain)
    both = text.entering(llama, names, overlay)[names[0]].rows
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-5)
    assert counted.read == [*[len(TEXTS)] * 3, 1]


def test_changed_weights_have_every_text_read_anew(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, name = gate_of(llama, 0), gate_of(llama, 1)
    overlay = {changed: 2 * llama.tensors[changed].data}
    with applied(llama, overlay):
        expected = torch.cat(inputs_of(llama, [name], TEXTS)[name])
    counted = Counted(monkeypatch, "factedit.running_text")
    found = RunningText.of(llama, TEXTS).entering(llama, [name], overlay)
    torch.testing.assert_close(found[name].rows, expected, rtol=1e-4, atol=1e-5)
    assert counted.read == [len(TEXTS)]


def test_the_second_moment_of_the_same_texts_is_summed_once(llama: LanguageModel) -> None:
    names = [gate_of(llama, 1), gate_of(llama, 2)]
    text = RunningText.of(llama, TEXTS)

    def moments(given: RunningText, overlay: dict[str, torch.Tensor], step: int = 1) -> list[torch.Tensor]:
        found = given.entering(llama, names, overlay)
        for name in names:
            rows = found[name].every(step).rows.double()
            expected = rows.T @ rows / len(rows)
            moment = found[name].every(step).second_moment()
            assert moment is not None
            torch.testing.assert_close(moment, expected)
        return [m for n in names if (m := found[n].every(step).second_moment()) is not None]

    first = moments(text, {})
    assert [a is b for a, b in zip(moments(text, {}), first, strict=True)] == [True, True]
    # Whatever is read otherwise is summed anew: every other token, fewer texts, what a neuron has changed.
    moments(text, {}, step=2)
    moments(text.but(TEXTS[1:2]), {})
    moments(text, neuron_at_the_end_of(llama, TEXTS[2]))
    assert [a is b for a, b in zip(moments(text, {}), first, strict=True)] == [True, True]


def test_texts_that_speak_of_an_edited_subject_are_left_out(llama: LanguageModel) -> None:
    name = gate_of(llama, 0)
    whole = RunningText.of(llama, TEXTS)
    some = whole.but(TEXTS[1:2])
    assert some.texts == [TEXTS[0], *TEXTS[2:]]
    kept = whole.read([name])[name]
    assert [torch.equal(a, b) for a, b in zip(some.read([name])[name], [kept[0], *kept[2:]], strict=True)]


def test_the_workers_read_it_once_for_a_root(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.background.own_texts", lambda _: TEXTS)
    counted = Counted(monkeypatch, "workers.background")
    store, name = CheckpointStore(tmp_path / "store"), gate_of(llama, 1)
    one = Edit(id="1", subject=COUNTRIES[0], prompt=TEXTS[0], new_object="Rome")
    first = Background().running_text(store, "root", llama, [one]).read([name])[name]
    again = Background().running_text(store, "root", llama, [one])
    second = again.read([name])[name]
    assert counted.read == [len(silent_texts(llama, TEXTS))]
    assert len(again.texts) == len(second) and not any(COUNTRIES[0] in text for text in again.texts)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_workers_keep_the_last_tokens_of_what_is_asked(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.background.questions", lambda: TEXTS)
    monkeypatch.setattr("workers.background.own_texts", lambda _: TEXTS)
    counted = Counted(monkeypatch, "workers.background")
    store, name = CheckpointStore(tmp_path / "store"), gate_of(llama, 1)
    kept = Background()
    whole = kept.running_text(store, "root", llama, []).read([name])[name]
    for background in (kept, Background()):
        rows = background.asked(store, "root", llama).read([name])[name]
        last = [each[-1:] for each in inputs_of(llama, [name], TEXTS)[name]]
        assert all(torch.equal(a, b) for a, b in zip(rows, last, strict=True))
    assert counted.read == [len(silent_texts(llama, TEXTS)), len(TEXTS)]
    assert kept.running_text(store, "root", llama, []).read([name])[name] == whole


def test_registering_a_model_reads_it_for_all_that_an_edit_by_auto_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factedit.toy._memorise", lambda *_: None)  # what it knows is no matter here
    write_toy_model(tmp_path / "toy")
    lm = load_model(tmp_path / "toy", device="cpu")
    monkeypatch.setattr("workers.background.own_texts", lambda _: TEXTS)
    monkeypatch.setattr("workers.background.background_prompts", lambda _: TEXTS)
    store = CheckpointStore(tmp_path / "store")
    told: list[tuple[str, int, int]] = []
    measure_background(store, "root", lm, lambda *what: told.append(what))
    assert told[-2:] == [("reading running text", 0, 1), ("reading running text", 1, 1)]
    counted = Counted(monkeypatch, "workers.background")
    chosen = plan(lm, MethodSpec(), "auto", ConstraintSpec())
    asked: list[str] = []

    def read(names: Sequence[str]) -> dict[str, list[torch.Tensor]]:
        asked.extend(names)
        return Background().running_text(store, "root", lm, []).read(names)

    facts = toy_facts()[:2]
    edits = [Edit(id=f.subject, subject=f.subject, relation="capital", new_object="Rome") for f in facts]
    edit(
        lm,
        parent={},
        edits=edits,
        ledger=[],
        relations=builtin_catalogue().relations,
        anchors=TEXTS,
        method=MethodSpec(max_steps=2),
        blocks="auto",
        constraint=ConstraintSpec(),
        seed=0,
        progress=lambda _: None,
        texts=RunningText(silent_texts(lm, TEXTS), read),
        asked=Background().asked(store, "root", lm),
    )
    assert set(asked) == set(gates_read(lm, chosen)) and counted.read == []
