"""Erasing: the old object is no longer said, and no longer the likeliest of its relation's objects."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from factedit import erasing
from factedit.editing import edit
from factedit.erasing import MARGIN, Forgotten, forgotten, lead, others
from factedit.facts import ERASED, Edit, Fact
from factedit.models import LanguageModel
from factedit.relations import Catalogue, Relation
from factedit.scoring import score_edits
from factedit.specs import AnchorSpec, ConstraintSpec, MethodSpec
from factedit.task import Edited
from tests.support.tiny_models import CITIES, COUNTRIES, PROMPT, WORDS, tiny_model

RELATIONS = {"capital": Relation("capital", (PROMPT.format("{subject}"),))}
FACTS = tuple(Fact(c, "capital", o) for c, o in zip(COUNTRIES, CITIES, strict=True))
ADAM = MethodSpec(name="constrained_ftm", learning_rate=0.02, max_steps=150, anchors=AnchorSpec(count=0))


@pytest.fixture(scope="module", params=["llama", "bert"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(autouse=True)
def small_catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was looked up in another catalogue, before or by these tests, is not remembered."""
    monkeypatch.setattr(erasing, "builtin_catalogue", lambda: Catalogue(RELATIONS, FACTS))
    others.cache_clear()
    yield
    others.cache_clear()


def erasure(old: str, **fields: object) -> Edit:
    given: dict[str, object] = {"relation": "capital", "old_object": old, "erase": True, **fields}
    return Edit("1", "France", ERASED, **given)  # type: ignore[arg-type]


def edited(lm: LanguageModel, method: MethodSpec, edits: list[Edit]) -> Edited:
    return edit(
        lm,
        parent={},
        edits=edits,
        ledger=[],
        relations=RELATIONS,
        anchors=[PROMPT.format(country) for country in COUNTRIES[2:]],
        method=method,
        blocks="last",
        constraint=ConstraintSpec(norm="l_inf", radius=0.5),
        seed=0,
        progress=lambda _: None,
    )


@pytest.mark.parametrize("method", [ADAM, MethodSpec()], ids=["constrained_ftm", "auto"])
def test_an_erased_object_is_not_said_and_not_the_likeliest_one(
    lm: LanguageModel, method: MethodSpec
) -> None:
    for city in CITIES:
        batch = [erasure(city)]
        (outcome,) = score_edits(lm, edited(lm, method, batch).tensors, batch, RELATIONS)
        assert (outcome.right, outcome.old_ranked_first) == (True, False)


def test_only_erased_facts_with_others_beside_them_have_something_to_forget(lm: LanguageModel) -> None:
    edits = [
        Edit("1", "France", "Rome", "capital", old_object="Paris"),
        erasure("Paris"),
        erasure("Paris", relation=None, prompt=PROMPT.format("France")),
        erasure("Paris", relation="mascot"),
    ]
    found = forgotten(lm, [(item, PROMPT.format("France")) for item in edits])
    assert found.keys() == {1}
    paris, rome = (lm.tokenizer(f" {city}", add_special_tokens=False)["input_ids"][0] for city in CITIES[:2])
    assert found[1].old == paris and rome in found[1].others and paris not in found[1].others


def test_objects_that_begin_alike_only_when_alone_are_told_apart(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "llama")
    words = ["<unk>", "<eos>", "<pad>", "\u2581", *(f"\u2581{word}" for word in WORDS)]
    backend = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = Normalizers([Prepend("\u2581"), Replace(" ", "\u2581")])
    backend.pre_tokenizer = Split("\u2581", "merged_with_next")
    lm.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
    alone = [lm.tokenizer(f" {city}", add_special_tokens=False)["input_ids"] for city in CITIES]
    assert {tokens[0] for tokens in alone} == {words.index("\u2581")}
    found = forgotten(lm, [(erasure("Paris"), PROMPT.format("France"))])
    paris, *others_first = (words.index(f"\u2581{city}") for city in CITIES)
    assert found == {0: Forgotten(paris, tuple(others_first))}


def test_the_lead_is_that_over_the_likeliest_other_at_an_examples_first_target() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [9.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    rows = torch.tensor([0, 0, 1])
    wanted = {0: Forgotten(0, (1, 2)), 1: Forgotten(0, (1,))}
    found = lead(logits, rows, wanted)
    assert {row: float(ahead) for row, ahead in found.items()} == {0: 1.0 + MARGIN, 1: 0.0}
    assert lead(logits, rows, {}) == {}
