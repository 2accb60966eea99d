"""How fast one matrix is edited on a GPU, and in how much memory: `python -m benchmarks.gpu_speed --help`.

The default model, or one with random weights in the shape of Llama 3 8B (bfloat16, nothing is downloaded):
what it answers is of no use, the work is that of a real one. Each method edits the MLP-out matrix of one
block. Memory is what the device held at most beyond what it held before the edit; the matrix rate that shares
are of is measured in the same run (benchmarks.limits).
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.cells import table
from benchmarks.data import DATA, read_rows
from benchmarks.edit_speed import counted, share_of
from benchmarks.engine import BENCH, Choices, default_model
from benchmarks.limits import machine, rates, shapes_in, whole
from benchmarks.options import BenchOption, DataOption, DeviceOption, ModelOption
from factedit.editing import edit
from factedit.facts import Edit
from factedit.models import LanguageModel, load_model, pick_device

LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
MATRIX_ROWS = 1024
"""Tokens in a product whose rate is measured: about a step of 64 edits."""


@dataclass(frozen=True, slots=True)
class Run:
    """`stepping`: the seconds and FLOPs of all steps but the first; `extra`: bytes."""

    method: str
    seconds: float
    flops: float
    stepping: tuple[float, float]
    extra: int
    metrics: dict[str, Any]


def random_llama(tokenizer_of: Path, device: torch.device, shape: dict[str, Any] = LLAMA_8B) -> LanguageModel:
    """A bfloat16 Llama with random weights, made on the device itself."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=tokenizer.eos_token_id))
    finally:
        torch.set_default_dtype(before)
    return LanguageModel(model=model, tokenizer=tokenizer, task="causal", device=device)


def run_method(
    lm: LanguageModel, edits: Sequence[Edit], method: str, block: int, more: dict[str, Any]
) -> Run:
    """Edits one MLP-out matrix; the overlay is thrown away."""
    choices = Choices.of(method, {"blocks": [block], "parameters": "mlp_out", **more})
    gc.collect()
    held = _held(lm.device, anew=True)
    with counted(lm, block) as work:

        def told(progress: dict[str, Any]) -> None:
            _wait(lm.device)
            work.told(progress)

        _wait(lm.device)
        started = time.perf_counter()
        edited = edit(
            lm,
            parent={},
            edits=edits,
            ledger=[],
            relations={},
            anchors=[],
            method=choices.method,
            blocks=choices.blocks,
            constraint=choices.constraint,
            seed=0,
            progress=told,
        )
        _wait(lm.device)
        seconds = time.perf_counter() - started
    return Run(method, seconds, work.flops, work.stepping, _held(lm.device) - held, edited.metrics)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _held(device: torch.device, *, anew: bool = False) -> int:
    """The most bytes that were held since it was last asked `anew`; 0 where that is not known."""
    if device.type != "cuda":
        return 0
    if anew:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.max_memory_allocated(device))


def report(runs: Sequence[Run], edits: int, rate: float) -> str:
    header = ["method", "seconds", "s an edit", "steps", "edits holding", "extra GB", "TFLOP needed"]
    header += ["share of the matrix rate, while stepping", "share, of all seconds"]
    return table(
        header,
        (
            [
                run.method,
                f"{run.seconds:.2f}",
                f"{run.seconds / edits:.4f}",
                str(run.metrics["steps"]),
                f"{run.metrics['edits_holding']} of {run.metrics['edits_total']}",
                f"{run.extra / 1e9:.2f}",
                f"{run.flops / 1e12:.2f}",
                *(share_of(rate, *each, 1) for each in (run.stepping, (run.seconds, run.flops))),
            ]
            for run in runs
        ),
    )


def main(
    count: Annotated[int, typer.Option(min=1, help="CounterFact edits in the batch.")] = 100,
    methods: Annotated[str, typer.Option(help="By commas.")] = "ft_m,loc_ft,constrained_ftm,ultraedit",
    random: Annotated[bool, typer.Option(help="Random weights in the shape of Llama 3 8B.")] = False,
    depth: Annotated[float, typer.Option(min=0, max=1, help="The block's relative depth.")] = 0.724,
    tiny: Annotated[bool, typer.Option(help="With --random: 2 blocks of width 64, to try this out.")] = False,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    data: DataOption = DATA,
    bench: BenchOption = BENCH,
) -> None:
    """Time the edits and print a table."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    target = pick_device(device)
    folder = model or default_model(bench)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 50_000}
    shape = {**LLAMA_8B, **small} if tiny else LLAMA_8B
    lm = random_llama(folder, target, shape) if random else load_model(folder, device=device)
    edits = [row.edit for row in read_rows("counterfact", data)[:count]]
    block = round(depth * (lm.n_blocks - 1))
    measured = rates(shapes_in(lm.model, MATRIX_ROWS), lm.device, [lm.model.dtype])
    rate = whole(measured, lm.model.dtype)
    runs = []
    for method in methods.split(","):
        run_method(lm, edits[:2], method, block, {"max_steps": 2})  # nothing is paid for being first
        runs.append(run_method(lm, edits, method, block, {}))
        console.print(f"{method}: {runs[-1].seconds:.2f} s")
    size = sum(p.numel() for p in lm.tensors.values())
    console.print(
        f"\n{size / 1e9:.2f} billion weights{' (random)' if random else ''}, {lm.model.dtype}, "
        f"block {block} of {lm.n_blocks}; {len(edits)} CounterFact edits; {machine(lm.device)}; "
        f"matrix products {rate / 1e12:.3g} TFLOP/s\n"
    )
    console.print(report(runs, len(edits), rate))


if __name__ == "__main__":
    typer.run(main)
