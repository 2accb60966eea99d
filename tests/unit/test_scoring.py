"""Scores: free answers as the model itself gives them, and candidates ranked by their whole probability."""

from pathlib import Path

import pytest
import torch

from factedit import erasing
from factedit.answers import begins_with, mentions
from factedit.facts import ERASED, Edit, Fact, Probe
from factedit.generation import MAX_MASKS, generate, next_tokens, rank
from factedit.models import LanguageModel
from factedit.prompts import answer_example, answer_tokens, collate, next_token_example, prompt_ids
from factedit.relations import Catalogue, Relation, builtin_catalogue
from factedit.scoring import NEW_TOKENS, score_edits, score_probes
from tests.support.tiny_models import CITIES, COUNTRIES, PROMPT, tiny_model

PROMPTS = [PROMPT.format(country) for country in COUNTRIES]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("bert"), "bert")


# Examples


def test_a_causal_example_predicts_each_target_token_and_then_the_end(lm: LanguageModel) -> None:
    before = prompt_ids(lm, "Rome is")
    new, york = (lm.tokenizer.convert_tokens_to_ids(word) for word in ("New", "York"))
    example = answer_example(lm, "Rome is", "New York")
    assert example.ids == (*before, new, york)
    assert example.positions == (len(before) - 1, len(before), len(before) + 1)
    assert example.targets == (new, york, lm.eos_token_id)
    assert answer_example(lm, "Rome is", "New York", stop=False).targets == (new, york)


def test_a_masked_example_predicts_one_mask_a_token_before_the_full_stop(bert: LanguageModel) -> None:
    example = answer_example(bert, "Rome is", "New York")
    words = bert.tokenizer.convert_ids_to_tokens(list(example.ids))
    assert words == ["<cls>", "Rome", "is", "<mask>", "<mask>", ".", "<sep>"]
    assert example.positions == (3, 4)
    assert bert.tokenizer.convert_ids_to_tokens(list(example.targets)) == ["New", "York"]


def test_padding_reaches_no_target(lm: LanguageModel) -> None:
    examples = [answer_example(lm, "Rome is", "Oslo"), next_token_example(lm, PROMPT.format("Spain"))]
    batch = collate(lm, examples, [1, 0])
    assert batch.index.tolist() == [1, 0]
    assert batch.input_ids.shape == (2, 5)
    assert batch.rows.tolist() == [0, 1, 1]
    assert batch.cols.tolist() == [4, 1, 2]


# Free answers


def test_a_greedy_answer_is_the_likeliest_token_step_by_step(lm: LanguageModel) -> None:
    ids = prompt_ids(lm, PROMPTS[0])
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    new = ids[len(prompt_ids(lm, PROMPTS[0])) :]
    (answer,) = generate(lm, [PROMPTS[0]], 5)
    if lm.eos_token_id in new:
        new = new[: new.index(lm.eos_token_id)]
    assert answer.text == lm.tokenizer.decode(new, skip_special_tokens=True)
    assert answer.n_tokens == len(new)


def test_a_masked_models_answer_is_its_likeliest_filling(bert: LanguageModel) -> None:
    (answer,) = generate(bert, [PROMPTS[0]], 8)
    best = -float("inf")
    for count in range(1, MAX_MASKS + 1):
        example = answer_example(bert, PROMPTS[0], " ".join(["<mask>"] * count))
        with torch.no_grad():
            logits = bert.model(input_ids=torch.tensor([example.ids])).logits[0, list(example.positions)]
        scores, tokens = logits.log_softmax(-1).max(-1)
        if float(scores.mean()) > best:
            best, text = float(scores.mean()), bert.tokenizer.decode(tokens, skip_special_tokens=True)
    assert answer.text == text


def test_next_tokens_are_the_likeliest_best_first(lm: LanguageModel) -> None:
    (tokens,) = next_tokens(lm, [PROMPTS[0]], 3)
    with torch.no_grad():
        whole = lm.model(input_ids=torch.tensor([prompt_ids(lm, PROMPTS[0])])).logits[0, -1].softmax(-1)
    assert [t.probability for t in tokens] == pytest.approx(whole.topk(3).values.tolist(), rel=1e-4)


# Ranking


def total(lm: LanguageModel, prompt: str, answer: str) -> float:
    """The log-probability of an answer, token by token."""
    ids, whole = prompt_ids(lm, prompt), 0.0
    for token in answer_tokens(lm, prompt, answer):
        with torch.no_grad():
            whole += float(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])
        ids.append(token)
    return whole


def test_candidates_are_ranked_by_their_whole_log_probability(lm: LanguageModel) -> None:
    names = ["New York", "Oslo", "Rome lies in"]
    (scores,) = rank(lm, [PROMPTS[1]], [names])
    assert scores == pytest.approx([total(lm, PROMPTS[1], name) for name in names], abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_a_probes_object_is_first_only_if_no_candidate_is_likelier(tmp_path: Path, seed: int) -> None:
    from factedit.models import load_model
    from tests.support.tiny_models import write_tiny_model

    lm = load_model(write_tiny_model(tmp_path, "llama", seed), device="cpu")
    candidates = (*CITIES, "New York", "New Oslo", "people in", "people of Rome", "York New")
    probes = [Probe(str(i), p, o, (), candidates) for i, p in enumerate(PROMPTS) for o in candidates]
    outcomes = score_probes(lm, {}, probes)
    for probe, outcome in zip(probes, outcomes, strict=True):
        own = total(lm, probe.prompt, probe.object)
        beaten = any(
            total(lm, probe.prompt, name) > own + 1e-4 for name in candidates if name != probe.object
        )
        assert outcome.ranked_first == (not beaten)
        assert outcome.answer_right == begins_with(outcome.answer, (probe.object,))
    assert any(outcome.ranked_first for outcome in outcomes)


def test_an_alias_is_no_rival(lm: LanguageModel) -> None:
    scores = {city: total(lm, PROMPTS[0], city) for city in CITIES}
    best, second = sorted(CITIES, key=lambda city: -scores[city])[:2]
    (beaten,) = score_probes(lm, {}, [Probe("1", PROMPTS[0], second, (), CITIES)])
    (first,) = score_probes(lm, {}, [Probe("1", PROMPTS[0], second, (best,), CITIES)])
    assert (beaten.ranked_first, first.ranked_first) == (False, True)


def test_a_probe_without_candidates_has_no_rank(lm: LanguageModel) -> None:
    (outcome,) = score_probes(lm, {}, [Probe("1", PROMPTS[0], "Paris")])
    assert outcome.ranked_first is None
    assert outcome.known == outcome.answer_right


# Edits

RELATIONS = {"capital": Relation("capital", (PROMPT.format("{subject}"),), ("{subject} : the capital is",))}


def test_an_edit_is_right_only_by_its_whole_answer(lm: LanguageModel) -> None:
    (answer,) = generate(lm, [PROMPTS[0]], NEW_TOKENS)
    own = Edit("1", "France", answer.text.strip() or "nothing", relation="capital")
    other = Edit("2", "France", "Rome Rome Rome", relation="capital")
    right, wrong = score_edits(lm, {}, [own, other], RELATIONS)
    assert right.prompt == PROMPTS[0]
    assert right.right == (answer.stopped and bool(answer.text.strip()))
    assert not wrong.right
    assert [p.prompt for p in right.paraphrases] == ["France : the capital is"]


def test_a_model_that_never_stops_has_answered_no_edit(lm: LanguageModel) -> None:
    for outcome in score_edits(lm, {}, [Edit("1", c, "Rome", "capital") for c in COUNTRIES], RELATIONS):
        assert outcome.stopped or not outcome.right


# Erasures


def erasure(old: str, relation: str | None = "capital", country: str = "France") -> Edit:
    return Edit("1", country, ERASED, relation, PROMPT.format(country), old, erase=True)


def test_to_erase_a_fact_its_old_object_is_needed() -> None:
    with pytest.raises(ValueError, match="old object"):
        Edit("1", "France", ERASED, "capital", erase=True)


def test_no_relation_has_the_word_that_stands_for_what_was_erased_as_an_object() -> None:
    assert ERASED not in {fact.object.casefold() for fact in builtin_catalogue().facts}


def test_an_erased_fact_is_right_when_the_answer_does_not_say_its_old_object(lm: LanguageModel) -> None:
    (answer,) = generate(lm, [PROMPTS[0]], NEW_TOKENS)
    said = answer.text.split()[0]
    unsaid = next(city for city in CITIES if city not in answer.text.split())
    given, gone = score_edits(lm, {}, [erasure(said, None), erasure(unsaid, None)], RELATIONS)
    assert (given.right, given.old_ranked_first) == (False, None)
    assert (gone.right, gone.old_ranked_first) == (True, None)


def test_an_erased_fact_is_wrong_while_its_old_object_is_the_likeliest_of_the_relations(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(
        RELATIONS, tuple(Fact(c, "capital", o) for c, o in zip(COUNTRIES, CITIES, strict=True))
    )
    monkeypatch.setattr(erasing, "builtin_catalogue", lambda: catalogue)
    erasing.others.cache_clear()
    (answer,) = generate(lm, [PROMPTS[0]], NEW_TOKENS)
    totals = {city: total(lm, PROMPTS[0], city) for city in CITIES}
    for city in CITIES:
        (outcome,) = score_edits(lm, {}, [erasure(city)], RELATIONS)
        first = city == max(totals, key=lambda name: totals[name])
        assert outcome.old_ranked_first == first
        assert outcome.right == (not first and not mentions(answer.text, city))
        (paraphrase,) = outcome.paraphrases
        assert paraphrase.old_ranked_first is not None
    erasing.others.cache_clear()


def test_an_update_has_no_rank_of_its_old_object(lm: LanguageModel) -> None:
    (outcome,) = score_edits(lm, {}, [Edit("1", "France", "Rome", "capital", old_object="Paris")], RELATIONS)
    assert outcome.old_ranked_first is None


@pytest.mark.parametrize(
    ("answer", "target", "said"),
    [
        (" Paris.", "Paris", True),
        ("the city of PARIS, in France", "Paris", True),
        ("Parisian", "Paris", False),
        ("It is New York", "The New York", True),
        ("New and York", "New York", False),
        ("", "Paris", False),
        ("a thing", "the", False),
    ],
)
def test_an_answer_mentions_what_stands_in_it_in_whole_words(answer: str, target: str, said: bool) -> None:
    assert mentions(answer, target) == said


def test_scores_are_of_the_overlay_and_the_root_is_back_afterwards(lm: LanguageModel) -> None:
    probes = [Probe(str(i), prompt, "Paris", (), CITIES) for i, prompt in enumerate(PROMPTS)]
    root = score_probes(lm, {}, probes)
    name = lm.block_tensors(1, "mlp_out")[0]
    other = {name: lm.tensors[name].data + torch.randn_like(lm.tensors[name]) * 3}
    assert score_probes(lm, other, probes) != root
    assert score_probes(lm, {}, probes) == root


def test_progress_is_told_to_the_end(lm: LanguageModel) -> None:
    told: list[tuple[int, int]] = []
    probes = [Probe(str(i), prompt, "Paris") for i, prompt in enumerate(PROMPTS)]
    score_probes(lm, {}, probes, batch_size=4, progress=lambda done, of: told.append((done, of)))
    assert told == [(4, 6), (6, 6)]
