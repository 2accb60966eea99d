"""A version's questions under way say what they would say alone, whoever joins and leaves."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factedit.generation import log_probabilities, rank
from factedit.models import LanguageModel, load_model
from factedit.overlay import applied
from factedit.prompts import Example
from factedit.toy import toy_facts, write_toy_model
from tests.support.sessions import answered, session_of
from tests.support.tiny_models import tiny_model
from workers.predictor.errors import BadQuestion, NoNumbers, PredictorError
from workers.predictor.questions import Answer, Asked, Question

COUNTRIES = [fact.subject for fact in toy_facts()]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("toy")
    write_toy_model(folder)
    return load_model(folder, device="cpu")


def some_questions(count: int, seed: int) -> list[Asked]:
    chance = random.Random(seed)
    return [
        Asked(
            Question(
                chance.choice(("The capital of {} is", "{}", "of {}", "  ")).format(chance.choice(COUNTRIES)),
                chance.choice((None, 3)),
                chance.choice((None, ("Paris", "Rome"), ("Oslo", "  "))),
            ),
            chance.choice((0, 1, 7, 200)),
        )
        for _ in range(count)
    ]


def rounded(answer: Answer | PredictorError) -> object:
    """What is to be equal; probabilities only nearly, as a batch's shape moves their last digits."""
    if isinstance(answer, PredictorError):
        return type(answer), answer.message
    candidates = answer.candidates and [(c.text, round(c.log_probability, 3)) for c in answer.candidates]
    top = answer.top_k and [(token.token, round(token.probability, 3)) for token in answer.top_k]
    return replace(answer, candidates=None, top_k=None), candidates, top


@pytest.mark.parametrize("seed", range(3))
def test_each_question_gets_the_answer_that_it_gets_alone(toy: LanguageModel, seed: int) -> None:
    chance = random.Random(seed)
    session = session_of(toy, max_rows=5)
    waiting = some_questions(40, seed)
    expected = [answered(toy, [asked.question], asked.max_tokens)[0] for asked in waiting]
    by_asked = dict(zip(waiting, expected, strict=True))
    under_way: set[Asked] = set()
    count = 0
    while waiting or under_way:
        joining = [waiting.pop() for _ in range(min(len(waiting), chance.randint(0, 4)))]
        leaving = [asked for asked in sorted(under_way, key=id) if chance.random() < 0.03]
        under_way = (under_way - set(leaving)) | set(joining)
        for asked, answer in session.turn(joining, leaving):
            under_way.remove(asked)
            count += 1
            assert rounded(answer) == rounded(by_asked[asked])
    assert count > 20
    assert any(isinstance(answer, BadQuestion) for answer in expected)


def test_models_that_answer_whole_batches_only_do_so_for_each_token_limit(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "bert")
    asked = [Asked(Question("The capital of France is", top_k=2), limit) for limit in (1, 3, 1)]
    session = session_of(lm)
    results = [*session.turn(asked, ()), *session.turn((), ())]
    assert [each.max_tokens for each, _ in results] == [1, 1, 3]
    for each, answer in results:
        assert rounded(answer) == rounded(answered(lm, [each.question], each.max_tokens)[0])


def test_weights_that_yield_no_numbers_are_an_error_and_the_next_version_is_well(toy: LanguageModel) -> None:
    name = toy.block_tensors(0, "mlp")[0]
    asked = Asked(Question("The capital of France is"), 5)
    with applied(toy, {name: torch.full_like(toy.tensors[name], torch.nan)}):
        ((_, failed),) = session_of(toy).turn([asked], ())
    assert isinstance(failed, PredictorError)
    session = session_of(toy)
    found = session.turn([asked], ())
    while not found:
        found = session.turn((), ())
    assert rounded(found[0][1]) == rounded(answered(toy, [asked.question], 5)[0])


# What is asked besides free text


def names(count: int) -> tuple[str, ...]:
    return tuple(f"{COUNTRIES[i % len(COUNTRIES)]} {i}" for i in range(count))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates each slice has read."""
    counted: list[int] = []

    def counting(lm: LanguageModel, examples: Sequence[Example]) -> list[float]:
        counted.append(len(examples))
        return log_probabilities(lm, examples)

    monkeypatch.setattr("workers.predictor.besides.log_probabilities", counting)
    return counted


def test_many_candidates_are_ranked_as_all_at_once_a_slice_a_turn(
    toy: LanguageModel, read: list[int]
) -> None:
    prompt = "The capital of France is"
    asked = Asked(Question(prompt, top_k=2, candidates=names(300)), 3)
    session = session_of(toy)
    found = session.turn([asked], ())
    while not found:
        found = session.turn((), ())
    ((_, answer),) = found
    assert isinstance(answer, Answer) and answer.candidates is not None
    scores = {each.text: each.log_probability for each in answer.candidates}
    (expected,) = rank(toy, [prompt], [names(300)])
    assert [scores[name] for name in names(300)] == pytest.approx(expected, abs=1e-3)
    assert sum(each.probability for each in answer.candidates) == pytest.approx(1)
    assert sum(read) == 300 and max(read) < 100


def test_between_two_slices_others_are_answered_and_the_oldest_ends_whoever_comes(
    toy: LanguageModel, read: list[int]
) -> None:
    session = session_of(toy)
    long = [Asked(Question(f"of {country}", candidates=names(800)), 0) for country in COUNTRIES[:4]]
    came = dict.fromkeys(long, 0)
    ended = {asked: 0 for asked, _ in session.turn(long, ())}
    for turn in range(1, 30):
        both = [short(turn), plain(turn)]
        came |= dict.fromkeys(both, turn)
        ended |= {asked: turn for asked, _ in session.turn(both, ())}
    assert [asked for asked in long if asked in ended][:1] == long[:1]
    others = [asked for asked in came if asked not in long and came[asked] < 29]
    assert max(ended[asked] - came[asked] for asked in others) <= 1


def short(number: int) -> Asked:
    return Asked(
        Question(f"The capital of {COUNTRIES[number % len(COUNTRIES)]} is", None, ("Rome", "Oslo")), 0
    )


def plain(number: int) -> Asked:
    return Asked(Question(f"{COUNTRIES[number % len(COUNTRIES)]}"), 1)


def test_a_slice_is_small_while_free_text_waits_for_it(toy: LanguageModel, read: list[int]) -> None:
    session = session_of(toy)
    long = Asked(Question("of France", candidates=names(300)), 0)
    text = Asked(Question("The capital of France is"), 2)
    found = session.turn([long, text], ())
    while not found:
        found = session.turn((), ())
    session.turn((), ())
    assert [asked for asked, _ in found] == [text]
    assert 0 < 3 * read[0] < read[-1]


def test_who_leaves_has_no_further_candidate_read(toy: LanguageModel, read: list[int]) -> None:
    session = session_of(toy)
    long = Asked(Question("The capital of France is", candidates=names(1000)), 0)
    assert session.turn([long], ()) == []
    session.turn((), [long])
    session.turn((), ())
    assert sum(read) < 1000 and read[1:] == [0, 0]


def test_weights_that_rank_without_numbers_are_the_questions_own_error(toy: LanguageModel) -> None:
    name = toy.block_tensors(0, "mlp")[0]
    asked = [Question("of France", candidates=("Paris", "Rome")), Question("of France", top_k=2)]
    with applied(toy, {name: torch.full_like(toy.tensors[name], torch.nan)}):
        assert [type(error) for error in answered(toy, asked, 0)] == [NoNumbers] * 2
