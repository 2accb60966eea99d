"""Edits of tiny models by fine-tuning, and what is put in place to see what it trains on."""

from collections.abc import Iterator
from typing import Any

import pytest

from factedit import training, unmodified
from factedit.editing import edit
from factedit.example_sets import ExampleSet
from factedit.facts import Edit, Fact
from factedit.models import LanguageModel
from factedit.relations import Relation
from factedit.specs import Blocks, ConstraintSpec, MethodName, MethodSpec
from factedit.task import Edited
from tests.support.tiny_models import CITIES, COUNTRIES, PROMPT

ANCHORS = [PROMPT.format(country) for country in COUNTRIES[2:]]
RELATIONS = {"capital": Relation("capital", (PROMPT.format("{subject}"),))}
EDITS = [
    Edit(id="1", subject="France", relation="capital", new_object="Rome"),
    Edit(id="2", subject="Italy", relation="capital", new_object="New York"),
]
NEW: tuple[MethodName, ...] = ("crisp", "fta", "retrain", "ft_l", "ft_m", "loc_ft")


def known_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every country's capital, as if each were an anchor's."""
    facts = {PROMPT.format(c): Fact(c, "capital", o) for c, o in zip(COUNTRIES, CITIES, strict=True)}
    monkeypatch.setattr(unmodified, "_known", lambda: facts)


def trained_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[int], list[int]]]]:
    """The batches that are trained on: places of modified and of unmodified examples."""
    seen: list[tuple[list[int], list[int]]] = []
    backward = training.Trainer._backward

    def watched(self: Any, facts: ExampleSet, step: Any, *rest: Any) -> float:
        seen.append(step)
        return backward(self, facts, step, *rest)

    monkeypatch.setattr(training.Trainer, "_backward", watched)
    yield seen


def edited(lm: LanguageModel, name: MethodName, blocks: Blocks = "auto", **more: Any) -> Edited:
    options: dict[str, Any] = {"learning_rate": 0.02, **more.pop("method", {})}
    given: dict[str, Any] = {
        "parent": {},
        "edits": EDITS,
        "ledger": (),
        "anchors": ANCHORS,
        "constraint": ConstraintSpec(),
        "progress": lambda _: None,
        "seed": 0,
        **more,
    }
    return edit(lm, relations=RELATIONS, method=MethodSpec(name=name, **options), blocks=blocks, **given)
