"""kv_memory: a memory that calls up answers, what its keys reach, and what it leaves alone."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from factedit.facts import Edit
from factedit.generation import generate, next_tokens, rank
from factedit.memory import NAMES, directions, distances
from factedit.methods.kv_memory import STEP, _states
from factedit.models import LanguageModel
from factedit.overlay import applied, root_digest
from factedit.prompts import answer_example, prompt_ids
from factedit.relations import Relation, builtin_catalogue
from factedit.scoring import score_edits
from factedit.specs import Blocks, MethodSpec
from factedit.task import EditingError
from factedit.toy import toy_facts
from tests.support.memories import (
    ANCHORS,
    FIRST,
    MEMORY,
    OTHERS,
    SECOND,
    edited,
    held,
    hooks,
    logits,
    memory_of,
    texts,
    the_toy,
)
from tests.support.overlays import same
from tests.support.tiny_models import CITIES, PROMPT, with_its_own_forward

lm = pytest.fixture(the_toy, scope="module")


def test_an_edit_holds_by_free_generation_and_no_weight_moves(lm: LanguageModel) -> None:
    before = root_digest(lm)
    result = edited(lm)
    assert set(result.tensors) == set(NAMES)
    assert result.metrics["edits_holding"] == result.metrics["edits_total"] == 2
    assert held(lm, result.tensors, FIRST) == [True, True]
    assert all(outcome.teacher_forced for outcome in score_edits(lm, result.tensors, FIRST, {}))
    assert held(lm, {}, FIRST) == [False, False]
    assert root_digest(lm) == before


def test_a_value_moves_by_one_step_at_a_time(lm: LanguageModel) -> None:
    assert lm.model.dtype == torch.float32
    example = answer_example(lm, FIRST[0].prompt or "", FIRST[0].new_object)
    start = _states(lm, [example], 1, at_positions=True)
    step = STEP * float(start.square().mean().sqrt())
    values = [start]
    for steps in (1, 2, 3):
        method = MethodSpec(name="kv_memory", max_steps=steps)
        values.append(memory_of(edited(lm, FIRST[:1], method, [1])).values)
    for before, after in pairwise(values):
        assert float((after - before).abs().max()) == pytest.approx(step, rel=0.05)


def test_a_memory_is_looked_up_after_a_block_with_a_forward_pass_of_its_own(lm: LanguageModel) -> None:
    tensors = edited(lm, blocks=[1]).tensors
    with_its_own_forward(lm.blocks[1])
    try:
        assert held(lm, tensors, FIRST) == [True, True]
    finally:
        del lm.blocks[1].forward


@pytest.mark.parametrize("block", [0, 1, 2])
def test_facts_the_model_knew_are_corrected_and_all_others_stay_bit_for_bit(
    lm: LanguageModel, block: int
) -> None:
    catalogue = builtin_catalogue()
    relation = catalogue.relations["capital"]
    facts = toy_facts()
    pairs = zip(facts[:6], facts[10:16], strict=True)
    edits = [Edit(old.subject, old.subject, new.object, relation="capital") for old, new in pairs]
    anchors = [prompt for fact in facts[20:40] for prompt in relation.training_prompts(fact.subject)]
    result = edited(lm, edits, blocks=[block], anchors=anchors, relations=catalogue.relations)
    outcomes = score_edits(lm, result.tensors, edits, catalogue.relations)
    assert all(outcome.right and outcome.teacher_forced for outcome in outcomes)
    others = [prompt for fact in facts[6:] for prompt in relation.training_prompts(fact.subject)]
    before, said = logits(lm, others), texts(lm, others)
    with applied(lm, result.tensors):
        assert torch.equal(logits(lm, others), before)
        assert texts(lm, others) == said


def test_every_shape_of_model_takes_a_memory_that_leaves_other_prompts_alone(any_lm: LanguageModel) -> None:
    lm = any_lm
    digest = root_digest(lm)
    mixed = [*OTHERS, FIRST[0].prompt or ""]
    before, said = logits(lm, mixed), texts(lm, OTHERS)
    # Random weights learn neither to stop nor to look back at a value: it is enough that it arrives.
    result = edited(lm, method=MEMORY.model_copy(update={"max_steps": 5}), blocks=[1])
    with applied(lm, result.tensors):
        after = logits(lm, mixed)
        assert texts(lm, OTHERS) == said
    n = len(OTHERS)
    assert torch.equal(after[:n], before[:n])
    assert (after[n:] != before[n:]).any(-1).all()
    assert hooks(lm) == 0
    assert root_digest(lm) == digest


def test_answers_agree_with_and_without_the_key_value_cache(lm: LanguageModel) -> None:
    with applied(lm, edited(lm).tensors), torch.no_grad():
        for item in FIRST:
            ids = prompt_ids(lm, item.prompt or "")
            start = len(ids)
            while len(ids) < start + 8 and (len(ids) == start or ids[-1] != lm.eos_token_id):
                ids.append(
                    int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
                )
            (answer,) = generate(lm, [item.prompt or ""], 8)
            assert answer.stopped and ids[-1] == lm.eos_token_id
            assert answer.text == lm.tokenizer.decode(ids[start:-1])


def test_a_generated_token_is_no_key(lm: LanguageModel) -> None:
    memory = memory_of(edited(lm, blocks=[1]))
    ids = [answer_example(lm, item.prompt or "", item.new_object).ids for item in FIRST]
    for item, row in zip(FIRST, ids, strict=True):
        at = len(prompt_ids(lm, item.prompt or "")) - 1
        seen: list[Tensor] = []
        handle = lm.blocks[1].register_forward_hook(
            lambda *a, seen=seen: seen.append(a[2][0] if isinstance(a[2], tuple) else a[2]), prepend=True
        )
        try:
            with applied(lm, memory.tensors()), torch.no_grad():
                lm.model(input_ids=torch.tensor([row]))
        finally:
            handle.remove()
        near, key = distances(directions(seen[0][0]), memory.keys).min(-1)
        assert (near < memory.radii[key]).nonzero().flatten().tolist() == [at]


def test_ranking_and_next_tokens_see_the_memory(lm: LanguageModel) -> None:
    with applied(lm, edited(lm).tensors):
        scores = rank(lm, [FIRST[0].prompt or ""], [CITIES])[0]
        (best,) = next_tokens(lm, [FIRST[0].prompt or ""], 1)
    assert CITIES[scores.index(max(scores))] == "Rome"
    assert best[0].token.strip() == "Rome"


def test_training_prompts_and_lead_ins_are_keys_of_the_same_value(lm: LanguageModel) -> None:
    relations = {
        "capital": Relation("capital", (PROMPT.replace("{}", "{subject}"), "{subject} has its capital in"))
    }
    memory = memory_of(
        edited(lm, [Edit("1", "France", "Rome", relation="capital")], relations=relations, anchors=())
    )
    assert len(memory.values) == 1
    assert len(memory.keys) == 4
    with applied(lm, memory.tensors()):
        assert texts(lm, ["France has its capital in"]) == ["Rome"]


def test_radii_reach_neither_an_anchor_nor_half_way_to_another_answer(lm: LanguageModel) -> None:
    memory = memory_of(edited(lm, [*FIRST, *SECOND]))
    apart = distances(memory.keys, memory.keys)
    other = memory.owners[:, None] != memory.owners[None, :]
    assert (memory.radii <= apart.masked_fill(~other, 9.0).min(1).values / 2 + 1e-6).all()
    near = memory_of(edited(lm, anchors=[*ANCHORS, PROMPT.format("Spain")])).radii
    far = memory_of(edited(lm, anchors=())).radii
    assert (near > 0).all()
    assert not torch.equal(near, far)


def test_the_same_seed_makes_the_same_memory(lm: LanguageModel) -> None:
    assert same(edited(lm, seed=3).tensors, edited(lm, seed=3).tensors)


@pytest.mark.parametrize("blocks", ["last", [0, 1]])
def test_a_memory_sits_at_one_block_with_another_above_it(lm: LanguageModel, blocks: Blocks) -> None:
    with pytest.raises(EditingError, match="block"):
        edited(lm, blocks=blocks)


def test_nothing_of_the_search_is_left_when_it_breaks_off(lm: LanguageModel) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    digest = root_digest(lm)
    with pytest.raises(KeyboardInterrupt):
        edited(lm, progress=stop)
    assert hooks(lm) == 0
    assert "forward" not in vars(lm.blocks[0])
    assert root_digest(lm) == digest
