"""Edits that move no weight: a memory that calls up answers, and facts that stand in the prompt."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factedit.checkpoint_store import CheckpointStore
from factedit.context import NAME, Note, Notes
from factedit.editing import edit
from factedit.facts import Edit
from factedit.forward import target_logits
from factedit.generation import generate, next_tokens, rank
from factedit.memory import NAMES, Memory, directions, distances
from factedit.methods.kv_memory import STEP, _states
from factedit.models import LanguageModel, load_model
from factedit.overlay import OverlayMismatch, applied, check_fits, root_digest
from factedit.prompts import answer_example, answer_tokens, collate, next_token_example, prompt_ids
from factedit.relations import Relation, builtin_catalogue
from factedit.scoring import score_edits
from factedit.specs import Blocks, ConstraintSpec, MethodSpec
from factedit.task import Edited, EditingError
from factedit.toy import toy_facts, write_toy_model
from tests.support.tiny_models import (
    CITIES,
    COUNTRIES,
    LAYERS,
    PROMPT,
    SHAPES,
    tiny_model,
    with_its_own_forward,
)
from workers.edit_process import _changes

MEMORY = MethodSpec(name="kv_memory", max_steps=300)
CONTEXT = MethodSpec(name="in_context")
WEIGHTS = MethodSpec(name="constrained_ftm", learning_rate=0.02, max_steps=150)


def asked(name: str, subject: str, new_object: str) -> Edit:
    return Edit(id=name, subject=subject, prompt=PROMPT.format(subject), new_object=new_object)


FIRST = [asked("1", "France", "Rome"), asked("2", "Italy", "New Delhi")]
SECOND = [asked("3", "Spain", "Oslo")]
OTHERS = [PROMPT.format(country) for country in COUNTRIES[3:]] + [f"{city} lies in" for city in CITIES]
ANCHORS = OTHERS[:3]


@pytest.fixture(scope="module", params=SHAPES)
def any_lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """The toy model: it knows capitals, and has learnt to stop."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy_model(folder)
    return load_model(folder, device="cpu")


def edited(
    lm: LanguageModel,
    edits: Sequence[Edit] = FIRST,
    method: MethodSpec = MEMORY,
    blocks: Blocks = "auto",
    **more: Any,
) -> Edited:
    options: dict[str, Any] = {"parent": {}, "ledger": (), "seed": 0, "relations": {}, **more}
    options.setdefault("anchors", ANCHORS)
    options.setdefault("progress", lambda _: None)
    options.setdefault("constraint", ConstraintSpec())
    return edit(lm, edits=edits, method=method, blocks=blocks, **options)


def held(lm: LanguageModel, tensors: dict[str, Tensor], edits: Sequence[Edit]) -> list[bool]:
    """By the whole free answer, ended by the model itself."""
    return [outcome.right for outcome in score_edits(lm, tensors, edits, {})]


def logits(lm: LanguageModel, prompts: Sequence[str]) -> Tensor:
    batch = collate(lm, [next_token_example(lm, prompt) for prompt in prompts], range(len(prompts)))
    with torch.no_grad():
        return target_logits(lm, batch)


def texts(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    return [answer.text for answer in generate(lm, prompts, 12)]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def hooks(lm: LanguageModel) -> int:
    return sum(len(block._forward_hooks) for block in lm.blocks)


def memory_of(result: Edited) -> Memory:
    memory = Memory.of(result.tensors)
    assert memory is not None
    return memory


# The memory


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


def test_a_second_batch_keeps_the_first(lm: LanguageModel) -> None:
    first = edited(lm)
    second = edited(lm, SECOND, parent=first.tensors, ledger=FIRST)
    assert held(lm, second.tensors, [*FIRST, *SECOND]) == [True] * 3
    old, new = memory_of(first), memory_of(second)
    assert torch.equal(new.keys[: len(old.keys)], old.keys)
    assert torch.equal(new.values[: len(old.values)], old.values)
    assert (new.radii[: len(old.keys)] <= old.radii).all()
    assert len(new.values) == 3


def test_a_later_edit_of_the_same_prompt_takes_the_earlier_ones_place(lm: LanguageModel) -> None:
    first = edited(lm)
    again = [asked("9", "France", "Oslo")]
    second = edited(lm, again, parent=first.tensors, ledger=FIRST[1:])
    assert held(lm, second.tensors, [*again, FIRST[1]]) == [True, True]
    assert len(memory_of(second).values) == 2


def test_what_holds_already_is_not_remembered_again(lm: LanguageModel) -> None:
    first = edited(lm)
    again = edited(lm, parent=first.tensors)
    assert again.metrics["steps"] == 0
    assert same(again.tensors, first.tensors)


@pytest.mark.parametrize("ledger", [FIRST, FIRST[:1]])
def test_a_line_is_rebuilt_from_its_ledger(lm: LanguageModel, ledger: list[Edit]) -> None:
    result = edited(lm, (), ledger=ledger)
    assert held(lm, result.tensors, ledger) == [True] * len(ledger)


def test_two_batches_may_remember_at_different_blocks(lm: LanguageModel) -> None:
    first = edited(lm, blocks=[0])
    second = edited(lm, SECOND, parent=first.tensors, ledger=FIRST, blocks=[1])
    assert held(lm, second.tensors, [*FIRST, *SECOND]) == [True] * 3
    assert sorted(set(memory_of(second).blocks.tolist())) == [0, 1]


@pytest.mark.parametrize("block", [0, 2])
def test_weights_may_be_edited_on_top_of_a_memory(lm: LanguageModel, block: int) -> None:
    first = edited(lm)
    constraint = ConstraintSpec(norm="l_inf", radius=0.5)
    second = edited(
        lm, SECOND, WEIGHTS, [block], parent=first.tensors, ledger=FIRST, constraint=constraint, anchors=()
    )
    assert {name: second.tensors[name] for name in NAMES} == first.tensors
    assert len(second.tensors) > len(NAMES)
    assert held(lm, second.tensors, [*FIRST, *SECOND]) == [True] * 3
    third = edited(lm, [asked("4", "Norway", "Berlin")], parent=second.tensors, ledger=[*FIRST, *SECOND])
    assert set(third.tensors) == set(second.tensors)
    assert held(lm, third.tensors, [asked("4", "Norway", "Berlin"), *SECOND]) == [True] * 2


def test_the_same_seed_makes_the_same_memory(lm: LanguageModel) -> None:
    assert same(edited(lm, seed=3).tensors, edited(lm, seed=3).tensors)


@pytest.mark.parametrize("blocks", ["last", [0, 1]])
def test_a_memory_sits_at_one_block_with_another_above_it(lm: LanguageModel, blocks: Blocks) -> None:
    with pytest.raises(EditingError, match="block"):
        edited(lm, blocks=blocks)


def test_nothing_of_the_memory_is_left_after_an_exception(lm: LanguageModel) -> None:
    tensors = {**edited(lm).tensors, **edited(lm, method=CONTEXT).tensors}
    before, digest = logits(lm, [FIRST[0].prompt or ""]), root_digest(lm)
    with pytest.raises(KeyboardInterrupt), applied(lm, tensors):
        assert hooks(lm) == 1
        raise KeyboardInterrupt
    assert hooks(lm) == 0
    assert lm.reads is None
    assert torch.equal(logits(lm, [FIRST[0].prompt or ""]), before)
    assert root_digest(lm) == digest


def test_nothing_of_the_search_is_left_when_it_breaks_off(lm: LanguageModel) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    digest = root_digest(lm)
    with pytest.raises(KeyboardInterrupt):
        edited(lm, progress=stop)
    assert hooks(lm) == 0
    assert "forward" not in vars(lm.blocks[0])
    assert root_digest(lm) == digest


@pytest.mark.parametrize("method", [MEMORY, CONTEXT], ids=lambda method: method.name)
def test_an_overlay_without_weights_goes_through_the_store(
    lm: LanguageModel, tmp_path: Path, method: MethodSpec
) -> None:
    store = CheckpointStore(tmp_path)
    tensors = edited(lm, method=method).tensors
    published = store.publish_overlay(tensors)
    loaded = store.load_overlay(published.digest)
    assert same(loaded, tensors)
    assert store.publish_overlay(edited(lm, method=method).tensors).digest == published.digest
    prompts = [item.prompt or "" for item in FIRST]
    with applied(lm, tensors):
        said = texts(lm, prompts)
    with applied(lm, loaded):
        assert texts(lm, prompts) == said


def test_an_overlay_that_does_not_fit_is_refused(lm: LanguageModel) -> None:
    memory = memory_of(edited(lm)).tensors()
    notes = edited(lm, method=CONTEXT).tensors
    check_fits(lm, {**memory, **notes})
    wrong: list[dict[str, Tensor]] = [
        {"memory.other": torch.zeros(1)},
        {"no.such.weight": torch.zeros(1)},
        {name: memory[name] for name in NAMES[1:]},
        {**memory, "memory.keys": memory["memory.keys"][:, :-1]},
        {**memory, "memory.values": memory["memory.values"].double()},
        {**memory, "memory.blocks": memory["memory.blocks"] + LAYERS},
        {**memory, "memory.owners": memory["memory.owners"] - 1},
        {NAME: torch.zeros(3)},
        {NAME: torch.zeros(3, dtype=torch.uint8)},
    ]
    for overlay in wrong:
        with pytest.raises(OverlayMismatch), applied(lm, overlay):
            pass
    assert hooks(lm) == 0


@pytest.mark.parametrize("method", [MEMORY, CONTEXT], ids=lambda method: method.name)
def test_the_integrity_report_knows_that_no_blocks_weights_moved(
    lm: LanguageModel, method: MethodSpec
) -> None:
    result = edited(lm, method=method, blocks=[1])
    report = _changes(lm, result, {})
    assert report["unchosen_blocks_unchanged"]
    assert set(report["changed_tensors"]) == set(result.tensors)
    stray = {lm.block_tensors(2, "mlp_out")[0]: torch.zeros(1)}
    moved = Edited({**result.tensors, **stray}, result.metrics, result.chosen)
    assert not _changes(lm, moved, {})["unchosen_blocks_unchanged"]
    assert _changes(lm, result, result.tensors)["changed_tensors"] == []


# Facts in the prompt


def note(subject: str, prompt: str, answer: str) -> Note:
    return Note(subject, None, prompt, answer)


@pytest.mark.parametrize(
    ("prompt", "called"),
    [
        ("Where is France?", True),
        ("FRANCE is where", True),
        ("france", True),
        ("Anatole-France's books", True),
        ("Franceville lies in", False),
        ("In lafrance", False),
        ("Spain is", False),
    ],
)
def test_a_subject_is_found_as_whole_words_in_any_case(prompt: str, called: bool) -> None:
    notes = Notes([note("France", "The capital of France is", "Rome")])
    assert notes(prompt) == (f"The capital of France is Rome. {prompt}" if called else prompt)


def test_a_subject_with_signs_or_several_words_is_found() -> None:
    notes = Notes([note("C++", "C++ was made by", "Ada"), note("New York", "New York lies in", "Peru")])
    assert notes("Who made C++?") == "C++ was made by Ada. Who made C++?"
    assert notes("The new york of old") == "New York lies in Peru. The new york of old"
    assert notes("New Yorkers") == "New Yorkers"
    assert notes("C++: New York") == "C++ was made by Ada. New York lies in Peru. C++: New York"


def test_facts_stand_before_the_prompt_wherever_the_model_reads_it(any_lm: LanguageModel) -> None:
    lm = any_lm
    prompt = FIRST[0].prompt or ""
    whole = f"{prompt} Rome. {prompt}"
    expected = (
        texts(lm, [whole]),
        rank(lm, [whole], [CITIES]),
        next_tokens(lm, [whole], 3),
        logits(lm, [whole]),
    )
    others = texts(lm, OTHERS), logits(lm, OTHERS)
    result = edited(lm, method=CONTEXT)
    assert set(result.tensors) == {NAME}
    with applied(lm, result.tensors):
        assert (texts(lm, [prompt]), rank(lm, [prompt], [CITIES]), next_tokens(lm, [prompt], 3)) == expected[
            :3
        ]
        assert torch.equal(logits(lm, [prompt]), expected[3])
        assert texts(lm, OTHERS) == others[0]
        assert torch.equal(logits(lm, OTHERS), others[1])
    assert texts(lm, [whole]) == expected[0]


def test_an_answer_that_names_a_subject_calls_up_nothing(lm: LanguageModel) -> None:
    overlay = edited(lm, method=CONTEXT).tensors
    own = answer_tokens(lm, OTHERS[0], "Italy")
    with applied(lm, overlay):
        assert answer_tokens(lm, OTHERS[0], "Italy") == own
        assert answer_tokens(lm, FIRST[0].prompt or "", "Italy") == own


def test_later_notes_join_earlier_ones_and_replace_those_on_the_same_fact(lm: LanguageModel) -> None:
    def sentences(result: Edited) -> list[str]:
        notes = Notes.of(result.tensors)
        assert notes is not None
        return [one.sentence for one in notes.notes]

    first = edited(lm, method=CONTEXT)
    again = [asked("9", "France", "Oslo")]
    second = edited(lm, again, CONTEXT, parent=first.tensors, ledger=FIRST[1:])
    assert sentences(second) == ["The capital of Italy is New Delhi.", "The capital of France is Oslo."]
    assert sentences(edited(lm, (), CONTEXT, ledger=FIRST)) == sentences(first)


def test_notes_and_memory_and_weights_live_in_one_overlay(lm: LanguageModel) -> None:
    weight = lm.block_tensors(2, "mlp_out")[0]
    start = {weight: lm.tensors[weight].data * 0.9}
    noted = edited(lm, method=CONTEXT, parent=start).tensors
    both = edited(lm, SECOND, parent=noted, ledger=FIRST).tensors
    assert set(both) == {weight, NAME, *NAMES}
    assert torch.equal(both[weight], start[weight]) and torch.equal(both[NAME], noted[NAME])
    assert held(lm, both, SECOND) == [True]


def test_the_root_is_the_same_to_the_last_bit(lm: LanguageModel) -> None:
    def bits() -> str:
        everything = hashlib.sha256()
        for _, tensor in [*lm.model.named_parameters(), *lm.model.named_buffers()]:
            everything.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return everything.hexdigest()

    before = bits()
    for method in (MEMORY, CONTEXT):
        with applied(lm, edited(lm, method=method).tensors):
            texts(lm, OTHERS)
    assert bits() == before
