"""A draft changes how fast an answer is found, never what it is; nor does the order of the prompts."""

import random
from collections.abc import Iterator, Sequence

import pytest
import torch

from factedit import greedy
from factedit.drafts import Checked, Draft, Greedy, said_before
from factedit.generation import generate
from factedit.models import LanguageModel, load_model
from factedit.prompts import prompt_ids
from factedit.relations import builtin_catalogue
from factedit.toy import toy_facts
from tests.support.tiny_models import tiny_model

LIMIT = 6


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random model, which rarely stops."""
    return tiny_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def half_talker(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("half")
    tiny_model(folder, "llama")
    return load_model(folder, device="cpu", dtype=torch.bfloat16)


def prompts_of(lm: LanguageModel) -> list[str]:
    relation = builtin_catalogue().relations["capital"]
    subjects = [fact.subject for fact in toy_facts()[:20]]
    return [prompt for subject in subjects for prompt in relation.training_prompts(subject)[:2]]


def plainly(lm: LanguageModel, ids: Sequence[int]) -> tuple[list[int], bool]:
    """Greedy decoding of one prompt, step by step, without any cache."""
    tokens: list[int] = []
    while len(tokens) < LIMIT:
        with torch.no_grad():
            best = int(lm.model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, -1].argmax())
        if best == lm.eos_token_id:
            return tokens, True
        tokens.append(best)
    return tokens, False


def drafts_of(
    answer: Sequence[int], stopped: bool, eos: int, size: int, chance: random.Random
) -> list[Draft]:
    """Right ones, and wrong in every way."""
    right = [*answer, eos] if stopped else list(answer)
    noise = [chance.randrange(size) for _ in range(LIMIT + 3)]
    at = chance.randrange(len(right))
    drafts = [
        right,
        [*right, *noise],
        right[:-1],
        [],
        [eos],
        noise,
        [*right[:at], *noise],
        [*right[:at], eos],
    ]
    return [tuple(tokens) for tokens in drafts]


@pytest.mark.parametrize("name", ["toy", "talker"])
def test_whatever_the_draft_the_answer_is_that_of_plain_greedy_decoding(
    name: str, request: pytest.FixtureRequest
) -> None:
    lm: LanguageModel = request.getfixturevalue(name)
    assert lm.eos_token_id is not None
    chance = random.Random(0)
    size = lm.model.config.vocab_size
    ids = [prompt_ids(lm, prompt) for prompt in prompts_of(lm)] if name == "toy" else []
    ids += [[chance.randrange(size) for _ in range(chance.randint(1, 12))] for _ in range(20)]
    asked, drafts, expected = [], [], []
    for prompt in ids:
        answer, stopped = plainly(lm, prompt)
        for draft in drafts_of(answer, stopped, lm.eos_token_id, size, chance):
            asked.append(prompt)
            drafts.append(draft)
            expected.append((answer, stopped))
    assert {stopped for _, stopped in expected} == {True, False}
    found = greedy.checked(lm, asked, drafts, LIMIT, 64)
    assert [(answer.tokens, answer.stopped) for answer in found] == expected
    order = chance.sample(range(len(asked)), len(asked))
    again = greedy.checked(lm, [asked[i] for i in order], [drafts[i] for i in order], LIMIT, 64)
    assert again == [found[i] for i in order]


def test_a_right_draft_needs_no_decoding(toy: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(toy)
    answers = generate(toy, prompts, LIMIT)
    drafts = [said_before(toy, p, a.text, LIMIT) for p, a in zip(prompts, answers, strict=True)]
    monkeypatch.setattr(greedy, "Decoder", None)
    assert generate(toy, prompts, LIMIT, drafts=drafts) == answers


def test_a_draft_is_told_its_end_by_its_length(talker: LanguageModel) -> None:
    assert said_before(talker, "Rome is", " New York", 3)[-1] == talker.eos_token_id
    assert len(said_before(talker, "Rome is", " New York", 2)) == 2
    assert said_before(talker, "Rome is", " New York", 1) == said_before(talker, "Rome is", " New", 1)


def test_in_half_precision_neither_drafts_nor_company_change_an_answer_to_the_last_bit(
    half_talker: LanguageModel,
) -> None:
    lm = half_talker
    assert lm.eos_token_id is not None
    chance = random.Random(0)
    size = lm.model.config.vocab_size
    ids = [[chance.randrange(size) for _ in range(chance.randint(1, 12))] for _ in range(40)]
    seen: list[dict[int, torch.Tensor]] = []

    def asked(places: Sequence[int], drafts: Sequence[Draft | None]) -> list[Greedy]:
        first: dict[int, torch.Tensor] = {}
        seen.append(first)

        def note(checked: Checked) -> None:
            first[places[checked.place]] = checked.logits[0]

        return greedy.checked(lm, [ids[place] for place in places], drafts, LIMIT, 64, seen=note)

    places = list(range(len(ids)))
    alone = asked(places, [None] * len(ids))
    for _ in range(5):
        chance.shuffle(places)
        some = places[: chance.randint(1, len(places))]
        drafts = [
            chance.choice(drafts_of(alone[i].tokens, alone[i].stopped, lm.eos_token_id, size, chance))
            for i in some
        ]
        assert asked(some, drafts) == [alone[i] for i in some]
    for first in seen:
        assert all(torch.equal(logits, seen[0][place]) for place, logits in first.items())


def test_where_the_decoder_errs_the_check_has_the_last_word(
    toy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(toy)
    answers = generate(toy, prompts, LIMIT)
    right = greedy._decoded
    wrong = len(toy.tokenizer) - 1

    def erring(
        lm: LanguageModel, begun: list[greedy.Begun], size: int
    ) -> Iterator[tuple[greedy.Begun, Greedy]]:
        for each, rest in right(lm, begun, size):
            yield each, Greedy([*rest.tokens[:1], wrong, *rest.tokens[2:]], rest.stopped)

    monkeypatch.setattr(greedy, "_decoded", erring)
    assert generate(toy, prompts, LIMIT) != answers
    assert generate(toy, prompts, LIMIT, drafts=[None] * len(prompts)) == answers
    told: list[int] = []
    generate(toy, prompts, LIMIT, 8, told.append, drafts=[None] * len(prompts))
    assert told[-1] == len(prompts) and told == sorted(told)


def test_a_model_that_cant_be_decoded_token_by_token_is_checked_all_the_same(
    toy: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(toy)
    answers = generate(toy, prompts, LIMIT)
    monkeypatch.setattr(greedy, "can_decode", lambda lm: False)
    assert generate(toy, prompts, LIMIT) == answers
    drafts = [(5, 6) for _ in prompts]
    assert generate(toy, prompts, LIMIT, drafts=drafts) == answers
