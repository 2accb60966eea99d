"""Sequences that are read together say what each says alone."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from factedit import ranking, trees
from factedit.facts import Probe
from factedit.forward import up_to
from factedit.methods.keys import read_ends
from factedit.models import LanguageModel
from factedit.prompts import Example
from factedit.ranking import continuation, totals
from factedit.scoring import score_probes
from factedit.trees import Ids, answer_logits, can_weave, read_rows
from tests.support.tiny_models import CAUSAL, CITIES, COUNTRIES, PROMPT, tiny_model

NAMES = (*CITIES, "New York", "New Oslo", "people in", "people of Rome", "York New")


@pytest.fixture(scope="module", params=sorted(CAUSAL))
def usual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def gated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp(request.param), request.param)


def some(lm: LanguageModel, count: int, longest: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Sequences of few tokens, so that many begin alike."""
    chance, size = random.Random(seed), lm.model.config.vocab_size
    few = [chance.randrange(size) for _ in range(3)]
    return [tuple(chance.choices(few, k=chance.randint(1, longest))) for _ in range(count)]


@torch.no_grad()
def alone(lm: LanguageModel, ids: Ids) -> torch.Tensor:
    """Logits after each of its tokens."""
    found: torch.Tensor = lm.model(input_ids=torch.tensor([list(ids)])).logits[0]
    return found


@given(sequences=st.lists(st.lists(st.integers(4, 7), min_size=1, max_size=9), min_size=1, max_size=30))
def test_every_sequence_lies_in_one_row_and_what_rows_begin_with_alike_lies_there_once(
    llama: LanguageModel, sequences: list[list[int]]
) -> None:
    found: dict[int, list[int]] = {}
    for rows in trees.trees(llama, sequences):
        heads: list[dict[tuple[int, ...], int]] = [{} for _ in rows.input_ids]
        for each in rows.placed:
            path = list(each.path)
            found[each.sequence] = rows.input_ids[each.row, path].tolist()
            assert rows.positions[each.row, path].tolist() == list(range(len(path)))
            for at in range(len(path)):
                head = tuple(sequences[each.sequence][: at + 1])
                assert heads[each.row].setdefault(head, path[at]) == path[at]
                assert rows.seen is not None
                assert sorted(path[: at + 1]) == rows.seen[each.row, path[at]].nonzero().flatten().tolist()
    assert found == dict(enumerate(sequences))


@pytest.mark.parametrize(("room", "tokens"), [(128, 1024), (5, 20), (1, 1)])
def test_answers_are_as_likely_as_alone(
    usual: LanguageModel, room: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "ROOM", room)
    monkeypatch.setattr(trees, "TOKENS", tokens)
    assert can_weave(usual)
    examples = [
        Example(ids, tuple(sorted({0, len(ids) // 2, len(ids) - 1})), ()) for ids in some(usual, 40, 12)
    ]
    asked = [
        (example, place, row)
        for wanted, logits in answer_logits(usual, examples)
        for example, place, at in wanted
        for row in [logits[at]]
    ]
    assert len(asked) == sum(len(example.positions) for example in examples)
    for example, place, row in asked:
        wanted = alone(usual, examples[example].ids)[examples[example].positions[place]]
        torch.testing.assert_close(row, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("weaves", [True, False])
def test_what_enters_and_leaves_at_each_end_is_as_alone(
    gated: LanguageModel, weaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not weaves:
        monkeypatch.setattr(trees, "can_weave", lambda lm: False)
    # Gemma 2's windows here are of 32 tokens.
    sequences = [*some(gated, 30, 9, seed=1), *some(gated, 30, 40, seed=3)]
    assert max(map(len, sequences)) > 32
    inner = [gated.model.get_submodule(f"model.layers.{block}.mlp") for block in (1, 0)]
    *entering, leaving = flat(read_ends(gated, sequences, inner, gated.blocks[1]))
    for at, block in enumerate((1, 0)):
        (only,), _ = read_ends(gated, sequences, inner[at : at + 1], gated.blocks[block])
        torch.testing.assert_close(entering[at], only, atol=1e-4, rtol=1e-3)
    for place, ids in enumerate(sequences):
        mine = flat(read_ends(gated, [ids], inner, gated.blocks[1]))
        for every, (alone,) in zip([*entering, leaving], mine, strict=True):
            torch.testing.assert_close(every[place], alone, atol=1e-4, rtol=1e-3)
        with torch.no_grad(), up_to(gated, 2) as after:
            gated.model(input_ids=torch.tensor([ids]))
        torch.testing.assert_close(leaving[place], after[0][0, -1], atol=1e-4, rtol=1e-3)


def test_a_pass_that_ends_early_says_so(llama: LanguageModel) -> None:
    (rows,) = trees.trees(llama, [(4, 5), (4, 6)])
    with torch.no_grad(), up_to(llama, 1) as entering:
        read_rows(llama, llama.model, rows)
        raise AssertionError("it has gone on")
    assert entering[0].shape[:2] == (1, 3)
    with pytest.raises(RuntimeError, match="did not go through"), up_to(llama, 1):
        pass


def test_each_continuation_is_as_likely_as_alone(usual: LanguageModel) -> None:
    prompts, branches = some(usual, 9, 7), some(usual, 9, 4, seed=2)
    asked = [(prompt, branch) for prompt in prompts for branch in branches]
    found = totals(usual, [continuation(*pair) for pair in asked])
    for (prompt, branch), total in zip(asked, found, strict=True):
        rows = alone(usual, (*prompt, *branch))[len(prompt) - 1 : -1].log_softmax(-1)
        assert total == pytest.approx(float(rows.gather(1, torch.tensor(branch)[:, None]).sum()), abs=1e-3)


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
    monkeypatch.setattr(ranking, "can_weave", lambda lm: False)
    assert score_probes(usual, {}, probes) == together


def flat(read: tuple[list[Tensor], Tensor]) -> list[Tensor]:
    return [*read[0], read[1]]


def test_masked_models_read_no_trees(tmp_path: Path) -> None:
    assert not can_weave(tiny_model(tmp_path, "bert"))


def test_a_module_that_no_pass_goes_through_can_not_be_read(llama: LanguageModel) -> None:
    with pytest.raises(RuntimeError, match="did not go through"):
        read_ends(llama, [(4, 5)], [nn.Identity()], nn.Identity())
