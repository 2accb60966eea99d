"""What a step of training computes: no more than it needs, and just what the model itself would."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from factedit import example_sets, grouped_attention
from factedit.attention import UnusualAttention
from factedit.editing import edit
from factedit.example_sets import ExampleSet
from factedit.facts import Edit
from factedit.forward import target_logits
from factedit.holding import Anchors, mean_loss, next_token_log_probabilities
from factedit.methods import fine_tuning
from factedit.models import LanguageModel
from factedit.prompts import answer_example, next_token_example
from factedit.relations import Relation
from factedit.specs import AnchorSpec, ConstraintSpec, MethodName, MethodSpec
from factedit.task import Edited
from factedit.training import Trainer
from tests.support.tiny_models import CITIES, COUNTRIES, LAYERS, PROMPT

RELATIONS = {"capital": Relation("capital", (PROMPT.format("{subject}"),))}
EDITS = [Edit(id="1", subject="France", relation="capital", new_object="Rome")]
ANCHORS = [PROMPT.format(country) for country in COUNTRIES[2:]]
ANCHORS[0] = f"It is well known that {ANCHORS[0]}"
HELD = AnchorSpec(count=len(ANCHORS), weight=1)
LAST = LAYERS - 1


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """By pass of an ExampleSet that is quick to take gradients of: the model's attention meanwhile."""
    seen: list[str] = []

    def watched(lm: LanguageModel, *rest: Any, **more: Any) -> Tensor:
        seen.append(lm.model.config._attn_implementation)
        return target_logits(lm, *rest, **more)

    monkeypatch.setattr(example_sets, "target_logits", watched)
    yield seen


def some_examples(lm: LanguageModel) -> ExampleSet:
    prompts = ["Everybody knows: " + PROMPT.format(COUNTRIES[0]), *map(PROMPT.format, COUNTRIES[1:4])]
    examples = [answer_example(lm, *each) for each in zip(prompts, CITIES, strict=False)]
    return ExampleSet(lm, examples, range(len(examples)), 1)


def gradient(lm: LanguageModel, examples: ExampleSet) -> Tensor:
    (name,) = lm.block_tensors(LAST, "mlp_out")
    weight = lm.tensors[name].requires_grad_(True)
    try:
        mean_loss(examples).backward()
        assert weight.grad is not None
        return weight.grad
    finally:
        weight.grad = None
        weight.requires_grad_(False)


def test_gradients_are_the_models_own(lm: LanguageModel, attended: list[str]) -> None:
    examples = some_examples(lm)
    quick = gradient(lm, examples)
    assert attended == [grouped_attention.NAME]
    examples._grouped = False
    own = gradient(lm, examples)
    assert attended[1] != grouped_attention.NAME
    assert quick.norm() > 0
    torch.testing.assert_close(quick, own, rtol=1e-4, atol=1e-6)


def test_a_model_with_an_attention_of_its_own_keeps_it(
    lm: LanguageModel, attended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = some_examples(lm)
    wanted = gradient(lm, examples)

    def strange(_: Any) -> None:
        raise UnusualAttention("attention with sinks")

    monkeypatch.setattr(grouped_attention, "check_usual", strange)
    attended.clear()
    for _ in range(2):
        torch.testing.assert_close(gradient(lm, examples), wanted, rtol=1e-4, atol=1e-6)
    assert [each == grouped_attention.NAME for each in attended] == [True, False, False]


def test_long_rows_and_passes_without_gradients_keep_the_models_attention(
    lm: LanguageModel, attended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = some_examples(lm)
    with torch.no_grad():
        mean_loss(examples)
    monkeypatch.setattr(example_sets, "GROUPED_UP_TO", 4)
    gradient(lm, examples)
    assert len(attended) == 2 and grouped_attention.NAME not in attended


def test_a_divergence_is_the_same_in_parts(llama: LanguageModel) -> None:
    examples = [next_token_example(llama, prompt) for prompt in ANCHORS]
    held = ExampleSet(llama, examples, range(len(examples)), 1)
    answers = next_token_log_probabilities(held).roll(1, 0)  # somebody else's, so that there is some
    anchors, everyone = Anchors(held, answers), range(len(examples))
    parts = list(held.by_length(everyone, 2))
    assert len(parts) > 1
    with torch.no_grad():
        whole = anchors.divergence(everyone)
        summed = torch.stack([anchors.summed_divergence(part) for part in parts]).sum()
    assert whole > 0.01
    torch.testing.assert_close(summed / len(examples), whole)


def edited(lm: LanguageModel, name: MethodName = "constrained_ftm", **more: Any) -> Edited:
    given: dict[str, Any] = {"parent": {}, "ledger": [], "progress": lambda _: None, **more}
    given.setdefault("method", MethodSpec(name=name, learning_rate=0.01, max_steps=6, anchors=HELD))
    return edit(
        lm,
        edits=EDITS,
        relations=RELATIONS,
        anchors=ANCHORS,
        blocks=[LAST],
        constraint=ConstraintSpec(radius=0.05) if name == "constrained_ftm" else ConstraintSpec(),
        seed=0,
        **given,
    )


@pytest.mark.parametrize("changed", [None, 0, LAST])
def test_anchors_are_read_anew_only_where_the_parent_changes_what_they_enter_with(
    llama: LanguageModel, changed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent: dict[str, Tensor] = {}
    if changed is not None:
        (name,) = llama.block_tensors(changed, "mlp_out")
        parent = {name: llama.tensors[name].data * 1.5}
    read: list[int] = []
    build = ExampleSet.__init__

    def watched(self: ExampleSet, lm: LanguageModel, examples: Any, *rest: Any, **more: Any) -> None:
        read.append(len(examples))
        build(self, lm, examples, *rest, **more)

    monkeypatch.setattr(ExampleSet, "__init__", watched)
    found = edited(llama, parent=parent)
    assert read.count(len(ANCHORS)) == (2 if changed == 0 else 1)
    monkeypatch.setattr(fine_tuning, "_changed_below", lambda *_: True)
    again = edited(llama, parent=parent)
    assert found.metrics["steps"] == again.metrics["steps"] > 1
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, again.tensors[name])


def test_epochs_are_not_interrupted_by_a_look_each(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    failing = Trainer._failing

    def watched(self: Trainer, facts: ExampleSet) -> list[int]:
        found = failing(self, facts)
        looks.append(len(found))
        return found

    monkeypatch.setattr(Trainer, "_failing", watched)
    spec = MethodSpec(name="loc_ft", learning_rate=1e-4, epochs=7, max_steps=50)
    made = edited(llama, "loc_ft", method=spec)
    assert made.metrics["steps"] == 7
    assert len(looks) == 3  # before the first epoch, after five, and at the end
    assert made.metrics["edits_holding"] == (0 if looks[-1] else 1)
