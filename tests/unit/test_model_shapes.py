"""Every shape of model is edited by the same code: found by structure, and moved nowhere else."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from factedit.curvature import measure
from factedit.editing import edit
from factedit.facts import Edit
from factedit.forward import block_input, target_logits
from factedit.generation import generate
from factedit.models import LanguageModel, ModelError, Parameters, find_blocks
from factedit.overlay import applied
from factedit.prompts import answer_example, collate
from factedit.specs import AnchorSpec, Blocks, ConstraintSpec, MethodSpec
from factedit.task import Edited, EditingError
from tests.support.tiny_models import (
    CITIES,
    COUNTRIES,
    INNER,
    LAYERS,
    PROMPT,
    SHAPES,
    WIDTH,
    tiny_model,
    with_its_own_forward,
)

RADIUS = 0.5
ANCHORS = [PROMPT.format(country) for country in COUNTRIES[2:]]
ADAM = MethodSpec(name="constrained_ftm", learning_rate=0.02, max_steps=150, anchors=AnchorSpec(count=0))


@pytest.fixture(scope="module", params=SHAPES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def digest(lm: LanguageModel) -> str:
    """Of every bit of every tensor."""
    everything = hashlib.sha256()
    for name, tensor in [*lm.model.named_parameters(), *lm.model.named_buffers()]:
        everything.update(name.encode())
        everything.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return everything.hexdigest()


def edited(lm: LanguageModel, method: MethodSpec = ADAM, blocks: Blocks = "last", **more: Any) -> Edited:
    """A model in which Rome is the capital of France and New York that of Italy."""
    options: dict[str, Any] = {
        "parent": {},
        "ledger": (),
        "seed": 0,
        "anchors": ANCHORS,
        "edits": EDITS,
        **more,
    }
    options.setdefault("constraint", ConstraintSpec(norm="l_inf", radius=RADIUS))
    return edit(
        lm,
        relations={},
        method=method,
        blocks=blocks,
        progress=lambda _: None,
        **options,
    )


EDITS = [
    Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome"),
    Edit(id="2", subject="Italy", prompt=PROMPT.format("Italy"), new_object="New York"),
]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def answers(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
    return [answer.text.strip() for answer in generate(lm, prompts, 12)]


def assert_holds(lm: LanguageModel, result: Edited) -> None:
    with applied(lm, result.tensors), torch.no_grad():
        for item in EDITS:
            batch = collate(lm, [answer_example(lm, item.prompt or "", item.new_object)], [0])
            assert torch.equal(target_logits(lm, batch).argmax(-1), batch.targets)
        if lm.task == "causal":  # a masked model also chooses how many tokens its answer has
            assert answers(lm, [item.prompt or "" for item in EDITS]) == ["Rome", "New York"]


# Structure


def test_the_blocks_are_found(lm: LanguageModel) -> None:
    assert lm.n_blocks == LAYERS
    inside = [name for name in lm.tensors if lm.block_of(name) is not None]
    assert {lm.block_of(name) for name in inside} == set(range(LAYERS))
    assert not [name for name in inside if "embed" in name or "lm_head" in name or "wte" in name]


def test_the_task_is_told_from_the_configuration(lm: LanguageModel) -> None:
    assert lm.task == ("masked" if "Masked" in type(lm.model).__name__ else "causal")


def test_a_blocks_matrices_are_either_attentions_or_the_mlps(lm: LanguageModel) -> None:
    attention, mlp = set(lm.block_tensors(1, "attention")), set(lm.block_tensors(1, "mlp"))
    assert attention and mlp and not attention & mlp
    everything = lm.block_tensors(1, "all")
    assert attention | mlp == {name for name in everything if lm.tensors[name].ndim == 2}
    assert all(lm.block_of(name) == 1 for name in everything)
    assert all(INNER not in lm.tensors[name].shape or "qkv" in name for name in attention)
    assert all(sorted(lm.tensors[name].shape) == [WIDTH, INNER] for name in mlp)


def test_mlp_out_is_the_matrix_that_writes_the_inner_width_to_the_residual(lm: LanguageModel) -> None:
    (name,) = lm.block_tensors(1, "mlp_out")
    layer = lm.model.get_submodule(name.rpartition(".")[0])
    assert layer(torch.zeros(1, INNER)).shape == (1, WIDTH)


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match="no list of blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))


def test_the_outermost_list_is_the_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))

    model = nn.Module()
    model.layers = nn.ModuleList([Block()])
    assert find_blocks(model)[0] == "layers"


# The forward pass


@pytest.mark.parametrize("first", range(1, LAYERS))
def test_a_forward_pass_from_the_cached_prefix_is_the_whole_forward_pass(
    lm: LanguageModel, first: int
) -> None:
    examples = [answer_example(lm, PROMPT.format("France"), "New York"), answer_example(lm, "Rome is", "New")]
    batch = collate(lm, examples, [0, 1])
    with torch.no_grad():
        whole = target_logits(lm, batch)
        resumed = target_logits(lm, batch, prefix=block_input(lm, batch, first), first_block=first)
    assert whole.shape == (len(batch.targets), lm.model.config.vocab_size)
    assert torch.equal(whole, resumed)


def test_logits_at_the_targets_are_the_models_own(lm: LanguageModel) -> None:
    example = answer_example(lm, PROMPT.format("Spain"), "New York")
    batch = collate(lm, [example], [0])
    with torch.no_grad():
        own = lm.model(input_ids=torch.tensor([example.ids])).logits[0, list(example.positions)]
        assert torch.allclose(target_logits(lm, batch), own, atol=1e-5)


def test_the_forward_pass_is_the_models_own_again_afterwards(lm: LanguageModel) -> None:
    batch = collate(lm, [answer_example(lm, "Rome is", "New")], [0])
    hidden = block_input(lm, batch, 1)
    target_logits(lm, batch, prefix=hidden, first_block=1)
    logits = lm.model(input_ids=batch.input_ids).logits
    assert logits.shape[:2] == batch.input_ids.shape
    assert "forward" not in vars(lm.blocks[0])


def test_a_blocks_own_forward_pass_is_its_own_again_afterwards(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "llama")
    own = with_its_own_forward(lm.blocks[0])
    batch = collate(lm, [answer_example(lm, "Rome is", "New")], [0])
    hidden = block_input(lm, batch, 1)
    assert torch.equal(target_logits(lm, batch, prefix=hidden, first_block=1), target_logits(lm, batch))
    assert vars(lm.blocks[0])["forward"] is own


# Edits


@pytest.mark.parametrize("parameters", ["all", "mlp", "mlp_out", "attention"])
def test_an_edit_holds_and_moves_its_block_alone_and_not_far(
    lm: LanguageModel, parameters: Parameters
) -> None:
    before = digest(lm)
    roots = {name: tensor.detach().clone() for name, tensor in lm.tensors.items()}
    result = edited(lm, ADAM.model_copy(update={"parameters": parameters}), [LAYERS - 1])
    assert digest(lm) == before
    assert result.tensors
    assert set(result.tensors) <= set(lm.block_tensors(LAYERS - 1, parameters))
    for name, tensor in result.tensors.items():
        assert tensor.dtype == roots[name].dtype
        assert 0 < (tensor - roots[name]).abs().max() <= RADIUS * (1 + 1e-5)
    assert_holds(lm, result)
    assert digest(lm) == before


def test_auto_edits_every_shape(lm: LanguageModel) -> None:
    before = digest(lm)
    result = edited(lm, MethodSpec(max_steps=500), [LAYERS - 2, LAYERS - 1])
    assert result.chosen["rule"] == "natural_adam"
    assert_holds(lm, result)
    assert digest(lm) == before


@pytest.mark.parametrize("method", [ADAM, MethodSpec()], ids=["constrained_ftm", "auto"])
def test_the_same_seed_makes_the_same_bits(lm: LanguageModel, method: MethodSpec) -> None:
    assert same(edited(lm, method, seed=7).tensors, edited(lm, method, seed=7).tensors)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.one_of(
        st.sampled_from(["auto", "first", "last"]),
        st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=LAYERS),
    ),
    name=st.sampled_from(["auto", "constrained_ftm", "ftm"]),
    parameters=st.sampled_from([None, "mlp", "mlp_out", "attention"]),
    norm=st.sampled_from(["l_inf", "l_2", "none"]),
    anchors=st.sampled_from([0, 3]),
    steps=st.integers(1, 4),
)
def test_whatever_is_chosen_the_root_and_the_unchosen_blocks_stay(
    llama: LanguageModel,
    blocks: Blocks,
    name: Any,
    parameters: Any,
    norm: Any,
    anchors: int,
    steps: int,
) -> None:
    before = digest(llama)
    method = MethodSpec(
        name=name, parameters=parameters, max_steps=steps, anchors=AnchorSpec(count=anchors, weight=1.0)
    )
    bounded = name != "ftm" and norm != "none"
    ball = ConstraintSpec(norm=norm, radius=0.01) if bounded else ConstraintSpec(norm="none")
    result = edited(llama, method, blocks, constraint=ball)
    assert digest(llama) == before
    chosen = result.chosen["blocks"]
    assert {llama.block_of(tensor) for tensor in result.tensors} <= set(chosen)
    moved = {n: t.double() - llama.tensors[n].double() for n, t in result.tensors.items()}
    if bounded and norm == "l_inf":
        assert all(m.abs().max() <= 0.01 * (1 + 1e-5) for m in moved.values())
    if bounded and norm == "l_2":
        assert sum(float(m.square().sum()) for m in moved.values()) ** 0.5 <= 0.01 * (1 + 1e-5)


def test_an_edit_on_top_of_another_keeps_its_parents_tensors_and_the_balls_centre(
    llama: LanguageModel,
) -> None:
    parent = edited(llama, blocks=[1]).tensors
    child = edited(llama, blocks=[2], parent=parent, ledger=EDITS)
    assert {name: child.tensors[name] for name in parent} == parent
    again = edited(llama, blocks=[1], parent=parent, ledger=EDITS)
    assert all((t - llama.tensors[n]).abs().max() <= RADIUS * (1 + 1e-5) for n, t in again.tensors.items())


def test_an_edit_that_already_holds_changes_nothing_more(llama: LanguageModel) -> None:
    parent = edited(llama, blocks=[1]).tensors
    again = edited(llama, blocks=[1], parent=parent)
    assert again.metrics["steps"] == 0
    assert same(again.tensors, parent)


@pytest.mark.parametrize("method", [ADAM, MethodSpec()], ids=["constrained_ftm", "auto"])
def test_a_ledger_without_new_edits_is_made_to_hold_as_if_all_of_it_were_new(
    llama: LanguageModel, method: MethodSpec
) -> None:
    rebuilt = edited(llama, method, edits=[], ledger=EDITS)
    assert_holds(llama, rebuilt)
    assert rebuilt.metrics["edits_total"] == len(EDITS)
    assert same(rebuilt.tensors, edited(llama, method).tensors)


def test_with_no_edit_in_force_the_version_is_the_root(llama: LanguageModel) -> None:
    before = digest(llama)
    for method in (ADAM, MethodSpec()):
        nothing = edited(llama, method, edits=[])
        assert nothing.tensors == {}
        assert (nothing.metrics["edits_total"], nothing.metrics["max_abs_change"]) == (0, 0.0)
        assert nothing.chosen.keys() == edited(llama, method).chosen.keys()
    assert digest(llama) == before


def test_the_model_is_as_it_was_when_an_edit_breaks_off(llama: LanguageModel) -> None:
    before = digest(llama)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit(
            llama,
            parent={},
            edits=EDITS,
            ledger=(),
            relations={},
            anchors=(),
            method=ADAM,
            blocks="auto",
            constraint=ConstraintSpec(),
            seed=0,
            progress=stop,
        )
    assert digest(llama) == before
    assert not any(tensor.requires_grad for tensor in llama.tensors.values())


def test_auto_without_anything_to_leave_alone_is_refused(llama: LanguageModel) -> None:
    with pytest.raises(EditingError, match="give anchors"):
        edited(llama, MethodSpec(), anchors=[], background=lambda names: measure(llama, names, []))


def test_no_answer_depends_on_what_else_is_asked(lm: LanguageModel) -> None:
    prompts = [PROMPT.format(country) for country in COUNTRIES] + [f"{city} lies in" for city in CITIES]
    together = answers(lm, prompts)
    assert together == [answers(lm, [prompt])[0] for prompt in prompts]


def test_a_saved_models_folder_is_all_that_is_needed(tmp_path: Path) -> None:
    one, two = tiny_model(tmp_path / "one", "qwen2"), tiny_model(tmp_path / "two", "qwen2")
    assert digest(one) == digest(two)
