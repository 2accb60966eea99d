"""All that runs on a GPU keeps its tensors there: found out on a CPU, by an emulated second device."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from factedit.decoding import can_decode, decode
from factedit.editing import edit
from factedit.facts import ERASED, Edit, Probe
from factedit.forward import target_logits
from factedit.generation import asked_again, generate, next_tokens, rank
from factedit.methods import EDITORS
from factedit.models import LanguageModel, load_model
from factedit.overlay import Overlay, applied
from factedit.prefix_states import PrefixStates
from factedit.prompts import answer_example, collate, prompt_ids
from factedit.relations import builtin_catalogue
from factedit.running_text import RunningText
from factedit.scoring import score_edits, score_probes
from factedit.specs import AnchorSpec, ConstraintSpec, MethodName, MethodSpec
from factedit.task import Edited
from factedit.toy import toy_facts, write_toy_model
from tests.support.other_device import DEVICE, OtherDevice, put
from tests.support.tiny_models import PROMPT, tiny_model

FACTS = toy_facts()
RELATION = builtin_catalogue().relations["capital"]
PROMPTS = [RELATION.training_prompts(fact.subject)[0] for fact in FACTS]
TEXTS = [f"{prompt} {fact.object}" for prompt, fact in zip(PROMPTS, FACTS, strict=True)][20:]
EDITS = [
    *(Edit(f"{i}", FACTS[i].subject, FACTS[i + 7].object, prompt=PROMPTS[i]) for i in range(3)),
    Edit("by relation", FACTS[9].subject, FACTS[1].object, relation="capital"),
]
METHODS: Sequence[MethodName] = sorted(EDITORS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("toy")
    write_toy_model(found)
    return found


@pytest.fixture
def there(folder: Path) -> Iterator[LanguageModel]:
    """The toy on the other device."""
    lm = load_model(folder, device="cpu")
    put(lm.model)
    lm.device = DEVICE
    with OtherDevice():
        yield lm


def made(
    lm: LanguageModel, edits: Sequence[Edit], spec: MethodSpec, parent: Overlay, was: list[Edit]
) -> Edited:
    return edit(
        lm,
        parent=parent,
        edits=edits,
        ledger=was,
        relations={"capital": RELATION},
        anchors=PROMPTS[30:40],
        method=spec,
        blocks="auto",
        constraint=ConstraintSpec(),
        seed=0,
        progress=lambda _: None,
        texts=RunningText.of(lm, TEXTS[:8]),
    )


def test_tensors_of_two_devices_are_refused() -> None:
    with OtherDevice():
        there, here = torch.zeros(3, device=DEVICE), torch.zeros(3)
        assert (there + 1).device == DEVICE and there.cpu().device == here.device
        assert there[torch.tensor([0, 1])].device == DEVICE
        with pytest.raises(RuntimeError, match="add: tensors on two devices"):
            there + here
        with pytest.raises(RuntimeError, match="two devices"):
            here[torch.tensor([0, 1], device=DEVICE)]
        with pytest.raises(RuntimeError, match="two devices"):
            torch.cat([here, there])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_edits_twice_and_its_overlay_lies_on_the_cpu(
    there: LanguageModel, method: MethodName
) -> None:
    spec = MethodSpec(name=method, max_steps=3, anchors=AnchorSpec(count=10, weight=1.0))
    first = made(there, EDITS[:2], spec, {}, [])
    then = made(there, EDITS[2:], spec, first.tensors, EDITS[:2])
    assert {tensor.device.type for tensor in then.tensors.values()} <= {"cpu"}
    assert len(score_edits(there, then.tensors, EDITS, {"capital": RELATION})) == len(EDITS)


def test_the_fisher_ball_and_the_relations_facts(there: LanguageModel) -> None:
    spec = MethodSpec(name="constrained_ftm", max_steps=2, initial="relation_facts")
    found = edit(
        there,
        parent={},
        edits=EDITS,
        ledger=[],
        relations={"capital": RELATION},
        anchors=PROMPTS[30:40],
        method=spec,
        blocks=[2, 3],
        constraint=ConstraintSpec(norm="fisher", radius=1.0),
        seed=0,
        progress=lambda _: None,
    )
    assert found.metrics["fisher_norm"] > 0


def test_an_object_is_erased(there: LanguageModel) -> None:
    fact = FACTS[0]
    gone = Edit("gone", fact.subject, ERASED, prompt=PROMPTS[0], old_object=fact.object, erase=True)
    assert made(there, [gone], MethodSpec(name="ftm", max_steps=3), {}, []).metrics["steps"] > 0


def test_what_is_asked_is_answered(there: LanguageModel) -> None:
    here = [fact.object for fact in FACTS[:4]]
    asked = PROMPTS[:4]
    assert [answer.text for answer in generate(there, asked, 4)] == here
    assert [answer.text for answer in asked_again(there, asked, [*here[:2], "x", ""], 4)] == here
    assert [found[0].token for found in next_tokens(there, asked, 2)] == here
    assert all(
        scores[0] > scores[1] for scores in rank(there, asked, [(here[i], here[i - 1]) for i in range(4)])
    )
    assert can_decode(there)
    assert all(found.stopped for found in decode(there, [prompt_ids(there, text) for text in asked], 4))


def test_probes_are_scored_beside_an_edit(there: LanguageModel) -> None:
    probes = [
        Probe(fact.subject, prompt, fact.object, (), (fact.object, FACTS[i - 1].object))
        for i, (fact, prompt) in enumerate(zip(FACTS[10:20], PROMPTS[10:20], strict=True))
    ]
    edited = made(there, EDITS, MethodSpec(name="ultraedit"), {}, [])
    states = PrefixStates(2)
    for _ in range(2):  # first read, then known
        outcomes = score_probes(there, edited.tensors, probes, states=states)
    with applied(there, edited.tensors):
        assert len(outcomes) == len(generate(there, [probe.prompt for probe in probes], 4))


def test_a_masked_model(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "bert")
    put(lm.model)
    lm.device = DEVICE
    with OtherDevice():
        batch = collate(lm, [answer_example(lm, PROMPT.format("France"), "Rome")], [0])
        assert target_logits(lm, batch).device == DEVICE
        assert generate(lm, [PROMPT.format("France")], 4)
        edits = [Edit("1", "France", "Rome", prompt=PROMPT.format("France"))]
        assert made(lm, edits, MethodSpec(name="constrained_ftm", max_steps=2), {}, []).tensors
