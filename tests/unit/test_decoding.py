"""Decoding of prompts that come and go says what plain greedy decoding of each alone says."""

import random
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from factedit import decoding
from factedit.decoding import Decoded, Decoder, can_decode, decode
from factedit.models import LanguageModel, load_model
from factedit.toy import toy_facts, write_toy_model
from tests.support.tiny_models import CAUSAL, MASKED, tiny_model

USUAL = sorted(set(CAUSAL) - {"gemma2"})


def alone(lm: LanguageModel, prompt: list[int], limit: int) -> tuple[list[int], bool]:
    """By the model's own means: tokens, and whether it stopped by itself."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=limit, eos_token_id=lm.eos_token_id, pad_token_id=1
    )
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = lm.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
    tokens = output[0, len(prompt) :].tolist()
    stopped = tokens[-1] == lm.eos_token_id
    return tokens[: len(tokens) - stopped], stopped


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("toy")
    write_toy_model(folder)
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module", params=USUAL)
def usual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp(request.param), request.param)


def some_prompts(lm: LanguageModel, count: int, longest: int, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    size = lm.model.config.vocab_size
    return [[chance.randrange(size) for _ in range(chance.randint(1, longest))] for _ in range(count)]


def test_models_of_the_usual_shape_can_be_decoded_and_say_what_they_say_alone(usual: LanguageModel) -> None:
    assert can_decode(usual)
    prompts = some_prompts(usual, 12, 30, seed=1)
    for prompt, found in zip(prompts, decode(usual, prompts, 9, max_rows=5), strict=True):
        assert (found.tokens, found.stopped) == alone(usual, prompt, 9)


@pytest.mark.parametrize("shape", sorted({*CAUSAL, *MASKED} - set(USUAL)))
def test_models_of_another_shape_are_found_out(shape: str, tmp_path: Path) -> None:
    assert not can_decode(tiny_model(tmp_path, shape))


@pytest.mark.parametrize("seed", range(6))
def test_whoever_comes_and_goes_and_whenever_each_prompt_gets_its_own_answer(
    toy: LanguageModel, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    # Small enough that prompts wait, are read in pieces, and are forgotten again.
    read = chance.choice((1, 4, 16))
    monkeypatch.setattr(decoding, "KEPT", chance.choice((0, 2, 100)))
    max_rows, max_bytes = chance.choice((1, 3, 8)), chance.choice((1, 1 << 16, 1 << 30))
    decoder = Decoder(toy, max_rows=max_rows, max_bytes=max_bytes, read=read)
    known = [toy.tokenizer(f"The capital of {fact.subject} is")["input_ids"] for fact in toy_facts()[:10]]
    prompts = known + some_prompts(toy, 20, 40, seed)
    running: list[Decoded] = []
    finished: list[Decoded] = []
    for _ in range(150):
        if chance.random() < 0.6:
            running.append(decoder.join(chance.choice(prompts), chance.randint(0, 12)))
        if running and chance.random() < 0.15:
            left = running.pop(chance.randrange(len(running)))
            decoder.leave(left)
        for each in decoder.step():
            if each in running:
                running.remove(each)
                finished.append(each)
    while len(decoder):
        finished += decoder.step()
    assert len(finished) > 20
    assert decoder.n_bytes == 0
    for each in finished:
        expected = alone(toy, list(each.prompt), each.limit) if each.limit else ([], False)
        assert (each.tokens, each.stopped) == expected
