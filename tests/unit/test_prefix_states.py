"""States below the changed blocks, read once: the same answers, whatever earlier jobs have read."""

from pathlib import Path

import pytest
import torch

from factedit import prefix_states
from factedit.drafts import draft_logits
from factedit.facts import Probe
from factedit.fixed_shape import fixed
from factedit.models import LanguageModel, load_model
from factedit.overlay import Overlay
from factedit.prefix_states import PrefixStates, shared_block
from factedit.prompts import Example
from factedit.scoring import score_probes
from tests.support.tiny_models import CITIES, COUNTRIES, PROMPT, tiny_model

READ = [(7, 8, 9), (7, 8, 10, 11), (9,) * 9, (12, 6)]
SHAPE = 4, 16


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("half")
    tiny_model(folder, "llama")
    return load_model(folder, device="cpu", dtype=torch.bfloat16)


def overlay(lm: LanguageModel, block: int) -> Overlay:
    torch.manual_seed(0)
    name = lm.block_tensors(block, "mlp_out")[0]
    return {name: lm.tensors[name].data + torch.randn_like(lm.tensors[name])}


def probes() -> list[Probe]:
    return [Probe(str(i), PROMPT.format(c), CITIES[i], (), CITIES) for i, c in enumerate(COUNTRIES)]


def test_outcomes_are_the_same_with_states_that_were_known_and_without(lm: LanguageModel) -> None:
    edited, states = overlay(lm, 1), PrefixStates(1)
    assert shared_block(lm, edited) == 1
    plain = score_probes(lm, edited, probes())
    assert plain != score_probes(lm, {}, probes())
    assert score_probes(lm, edited, probes(), states=states) == plain
    assert states.grown
    known = PrefixStates.unpacked(lm, 1, states.packed())
    assert score_probes(lm, edited, probes(), states=known) == plain
    assert not known.grown


def test_a_state_depends_on_its_own_tokens_alone(half: LanguageModel) -> None:
    together = PrefixStates(1).of(half, READ, *SHAPE)
    for row, ids in enumerate(READ):
        alone = PrefixStates(1).of(half, [ids], *SHAPE)
        assert torch.equal(alone[0, : len(ids)], together[row, : len(ids)])


def test_states_are_to_the_last_bit_what_a_pass_through_all_blocks_computes(half: LanguageModel) -> None:
    examples = [Example(ids, (len(ids) - 1,), (0,)) for ids in READ]
    batch = fixed(half, examples, *SHAPE)
    plain = draft_logits(half, examples, batch, None)
    states = PrefixStates(1)
    for _ in range(2):
        assert torch.equal(draft_logits(half, examples, batch, states), plain)
    assert torch.equal(
        draft_logits(half, examples, batch, PrefixStates.unpacked(half, 1, states.packed())), plain
    )


def test_only_as_many_are_kept_as_there_is_room_for(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PrefixStates(1).of(lm, READ, *SHAPE)
    monkeypatch.setattr(prefix_states, "MAX_BYTES", whole[0, :7].nbytes)
    states = PrefixStates(1)
    assert torch.equal(states.of(lm, READ, *SHAPE), whole)
    assert 0 < states.packed()["states"].nbytes <= prefix_states.MAX_BYTES
    assert torch.equal(states.of(lm, READ, *SHAPE), whole)


@pytest.mark.parametrize("name", ["ids", "shapes", "states"])
def test_what_is_foreign_is_no_state(lm: LanguageModel, name: str) -> None:
    states = PrefixStates(1)
    whole = states.of(lm, READ, *SHAPE)
    packed = states.packed()
    for wrong in (packed[name][:-1], packed[name].double()[..., None]):
        found = PrefixStates.unpacked(lm, 1, {**packed, name: wrong})
        assert torch.equal(found.of(lm, READ, *SHAPE), whole)
        assert found.grown
    assert not PrefixStates.unpacked(lm, 1, None).grown
    del packed[name]
    assert torch.equal(PrefixStates.unpacked(lm, 1, packed).of(lm, READ, *SHAPE), whole)


def test_states_are_shared_below_the_first_block_that_either_version_changes(
    lm: LanguageModel, tmp_path: Path
) -> None:
    assert shared_block(lm, {}, overlay(lm, 2)) == 2
    assert shared_block(lm, overlay(lm, 1), overlay(lm, 2)) == 1
    assert shared_block(lm, overlay(lm, 0)) is None
    assert shared_block(lm, {}) is None, "nothing is changed: there is nothing to compute again"
    embedding = {"model.embed_tokens.weight": lm.tensors["model.embed_tokens.weight"].data}
    assert shared_block(lm, embedding, overlay(lm, 2)) is None
    assert shared_block(tiny_model(tmp_path, "bert"), {}) is None
