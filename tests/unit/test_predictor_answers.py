"""What the predictor lets a model be asked, on tiny random models with little room."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from factedit.models import LanguageModel, load_model
from tests.support.sessions import answered
from workers.predictor.errors import BadQuestion
from workers.predictor.questions import Answer, Question

WORDS = ["<unk>", "<eos>", "<pad>", "<mask>", "a", "b", "c", "."]
ROOM = 16


def _saved(model: PreTrainedModel, folder: Path, *, mask: bool) -> LanguageModel:
    backend = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>"}
    special |= {"mask_token": "<mask>"} if mask else {}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    model.save_pretrained(folder)
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=ROOM, n_embd=32, n_layer=2, n_head=2, eos_token_id=1
    )
    return _saved(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"), mask=False)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=ROOM,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=1,
    )
    return _saved(RobertaForMaskedLM(config), tmp_path_factory.mktemp("roberta"), mask=True)


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_what_just_fits_is_answered_and_one_token_more_is_told_so(
    family: str, request: pytest.FixtureRequest
) -> None:
    lm: LanguageModel = request.getfixturevalue(family)
    asked = [
        Question(" ".join("a" * length), top_k=2, candidates=("b", "c")) for length in range(1, ROOM + 2)
    ]
    results = answered(lm, asked, max_tokens=4)
    refused = [isinstance(result, BadQuestion) for result in results]
    assert refused == sorted(refused)
    assert 0 < sum(refused) < len(refused)
    if family == "gpt2":
        assert refused.index(True) == ROOM - 4


def test_a_long_candidate_counts_as_well(gpt2: LanguageModel) -> None:
    fits, too_long = Question("a b", candidates=("a " * 14,)), Question("a b", candidates=("c", "a " * 15))
    results = answered(gpt2, [fits, too_long], max_tokens=1)
    assert isinstance(results[0], Answer)
    assert isinstance(results[1], BadQuestion)


@pytest.mark.parametrize("question", [Question(" "), Question("a", candidates=("b", " "))])
def test_what_has_no_tokens_is_told_so_rather_than_ranked_first(
    gpt2: LanguageModel, question: Question
) -> None:
    assert isinstance(answered(gpt2, [question], max_tokens=1)[0], BadQuestion)


def test_each_question_gets_what_it_asked_for_whatever_the_others_ask(gpt2: LanguageModel) -> None:
    asked = [
        Question("a", top_k=1),
        Question("a b", candidates=("c", "a", "b")),
        Question("b"),
        Question("c c c", top_k=3, candidates=("a", "b")),
    ]
    together = answered(gpt2, asked, max_tokens=3)
    for question, answer in zip(asked, together, strict=True):
        (alone,) = answered(gpt2, [question], max_tokens=3)
        assert isinstance(answer, Answer) and isinstance(alone, Answer)
        assert answer.text == alone.text
        assert [t.token for t in answer.top_k or ()] == [t.token for t in alone.top_k or ()]
        assert len(answer.top_k or ()) == (question.top_k or 0)
        assert [c.text for c in answer.candidates or ()] == [c.text for c in alone.candidates or ()]
        assert sorted(c.text for c in answer.candidates or ()) == sorted(question.candidates or ())
