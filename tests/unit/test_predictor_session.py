"""A version's questions under way say what they would say alone, whoever joins and leaves."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factedit.decoding import Decoder
from factedit.models import LanguageModel, load_model
from factedit.overlay import applied
from factedit.toy import toy_facts, write_toy_model
from tests.support.tiny_models import tiny_model
from workers.predictor.answers import answer_batch
from workers.predictor.errors import BadQuestion, PredictorError
from workers.predictor.questions import Answer, Asked, Question
from workers.predictor.session import Session, TokenByToken, WholeBatches

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
    session: Session = TokenByToken(toy, Decoder(toy, max_rows=5))
    waiting = some_questions(40, seed)
    expected = [answer_batch(toy, [asked.question], asked.max_tokens)[0] for asked in waiting]
    by_asked = dict(zip(waiting, expected, strict=True))
    under_way: set[Asked] = set()
    answered = 0
    while waiting or under_way:
        joining = [waiting.pop() for _ in range(min(len(waiting), chance.randint(0, 4)))]
        leaving = [asked for asked in sorted(under_way, key=id) if chance.random() < 0.03]
        under_way = (under_way - set(leaving)) | set(joining)
        for asked, answer in session.turn(joining, leaving):
            under_way.remove(asked)
            answered += 1
            assert rounded(answer) == rounded(by_asked[asked])
    assert answered > 20
    assert any(isinstance(answer, BadQuestion) for answer in expected)


def test_models_that_answer_whole_batches_only_do_so_for_each_token_limit(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "bert")
    asked = [Asked(Question("The capital of France is", top_k=2), limit) for limit in (1, 3, 1)]
    results = WholeBatches(lm).turn(asked, ())
    assert {a for a, _ in results} == set(asked)
    for each, answer in results:
        assert rounded(answer) == rounded(answer_batch(lm, [each.question], each.max_tokens)[0])


def test_weights_that_yield_no_numbers_are_an_error_and_the_next_version_is_well(toy: LanguageModel) -> None:
    name = toy.block_tensors(0, "mlp")[0]
    asked = Asked(Question("The capital of France is"), 5)
    with applied(toy, {name: torch.full_like(toy.tensors[name], torch.nan)}):
        ((_, failed),) = TokenByToken(toy, Decoder(toy)).turn([asked], ())
    assert isinstance(failed, PredictorError)
    session = TokenByToken(toy, Decoder(toy))
    found = session.turn([asked], ())
    while not found:
        found = session.turn((), ())
    assert rounded(found[0][1]) == rounded(answer_batch(toy, [asked.question], 5)[0])
