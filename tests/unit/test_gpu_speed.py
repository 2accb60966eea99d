"""The GPU benchmark, on the CPU: a random model of a shape, edited in one matrix, and its table."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_speed import LLAMA_8B, random_llama, report, run_method
from factedit.facts import Edit
from factedit.toy import toy_facts, write_toy_model

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 500}


@pytest.mark.parametrize("method", ["ft_m", "ultraedit"])
def test_a_random_model_is_edited_in_one_matrix(tmp_path: Path, method: str) -> None:
    write_toy_model(tmp_path, steps=1)
    lm = random_llama(tmp_path, torch.device("cpu"), {**LLAMA_8B, **SMALL})
    assert (lm.n_blocks, lm.model.dtype) == (2, torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in lm.tensors.items()}
    edits = [
        Edit(f.subject, f.subject, "Paris", prompt=f"The capital of {f.subject} is") for f in toy_facts()[:2]
    ]
    run = run_method(lm, edits, method, 1, {"max_steps": 2})
    assert run.metrics["changed_tensors"] == lm.block_tensors(1, "mlp_out")
    assert run.flops > 0 and run.stepping[0] <= run.seconds
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.tensors.items())
    assert f"| {method} | {run.seconds:.2f} |" in report([run], 2, 1e12)
