"""Where a fact is looked up, what is read there, and the value that is sought for it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from factedit.facts import Edit
from factedit.methods.keys import (
    Context,
    contexts,
    lookups,
    mean_over_contexts,
    read_inputs,
    subject_end,
)
from factedit.methods.values import Search, seek_values
from factedit.methods.weights import layer
from factedit.models import LanguageModel
from factedit.prompts import answer_example, prompt_ids
from tests.support.tiny_models import INNER, PROMPT, tiny_model

EDITS = [
    Edit(id="1", subject="France", prompt=PROMPT.format("France"), new_object="Rome"),
    Edit(id="2", subject="Italy", prompt=PROMPT.format("Italy"), new_object="New York"),
]


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left.double(), right.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "subject", "token"),
    [
        ("The capital of France is", "France", "France"),
        ("The capital of New York is", "New York", "York"),
        ("France lies in Paris . The people of France speak", "France", "France"),
        ("The capital of france is", "FRANCE", None),
        ("The capital of Spain is", "Italy", "is"),
    ],
)
def test_the_subjects_last_token_is_found(
    llama: LanguageModel, prompt: str, subject: str, token: str | None
) -> None:
    ids = prompt_ids(llama, prompt)
    place = subject_end(llama, prompt, subject)
    assert llama.tokenizer.convert_ids_to_tokens(ids[place]) == (token or "<unk>")
    if prompt.count(subject) == 2:
        assert place == len(ids) - 2


def test_the_subject_is_not_found_inside_other_words(llama: LanguageModel) -> None:
    assert subject_end(llama, "Rome lies in Romeville", "Rome") == 0


def test_a_subject_split_into_bytes_is_found_to_its_last(tmp_path: Path) -> None:
    qwen = tiny_model(tmp_path, "qwen2")
    prompt = "The capital of Curaçao™ is"
    place = subject_end(qwen, prompt, "Curaçao™")
    ids = prompt_ids(qwen, prompt)
    assert qwen.tokenizer.decode(ids[: place + 1]) == "The capital of Curaçao™"


def test_contexts_that_another_begins_with_are_read_in_passing(lm: LanguageModel) -> None:
    example = answer_example(lm, "The capital of France is", "Rome")
    ends = [3, 1, len(example.ids) - 1, 3]
    found = [Context(0, example, end, 1.0, bare=False) for end in ends]
    other = answer_example(lm, "A river in Italy is", "Rome")
    found.append(Context(0, other, 4, 1.0, bare=False))
    read = lookups(lm, found, 1)
    assert len(read.examples) == 2
    module = layer(lm, lm.block_tensors(1, "mlp_out")[0])
    alone = torch.cat([read_inputs(lookups(lm, [context], 1), module) for context in found])
    close(read_inputs(read, module), alone)


def test_what_is_read_at_a_lookup_is_what_enters_the_matrix_there(lm: LanguageModel) -> None:
    (name,) = lm.block_tensors(1, "mlp_out")
    module = lm.model.get_submodule(name.rpartition(".")[0])
    found = contexts(lm, EDITS, {}, lead_ins=2, seed=0)
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        for context in found:
            lm.model(input_ids=torch.tensor([context.example.ids]))
    handle.remove()
    expected = torch.stack([inputs[c.lookup] for inputs, c in zip(seen, found, strict=True)])
    read = read_inputs(lookups(lm, found, 1), module)
    assert read.shape == (6, INNER)
    close(read, expected)
    close(mean_over_contexts(read, found)[1], 0.5 * expected[3] + 0.25 * expected[4] + 0.25 * expected[5])


def test_a_sought_value_lowers_the_loss_and_is_no_longer_than_allowed(lm: LanguageModel) -> None:
    found = contexts(lm, EDITS, {}, lead_ins=1, seed=0)
    told: list[list[float]] = []
    search = Search(steps=20, pace=0.3, longest=1.5, essence=0.0)
    values = seek_values(
        lm, lm.blocks[1], 1, found, ["France", "Italy"], search, lambda _, losses: told.append([*losses])
    )
    assert all(last < first for first, last in zip(told[0], told[-1], strict=True))
    assert values.losses == told[-1]
    assert (values.changes.norm(dim=1) > 0).all()
