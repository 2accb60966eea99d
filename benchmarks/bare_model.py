"""The model alone, without a service, for benchmarks.predict_throughput.

`python -m benchmarks.bare_model FOLDER BATCH MAX_TOKENS < prompts.json`: answers the list of prompts in
batches by transformers' own `generate`, and by factedit.decoding, and prints the seconds of each batch.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import GenerationConfig

from factedit.decoding import decode
from factedit.models import LanguageModel, load_model


def generated(lm: LanguageModel, prompts: Sequence[str], max_tokens: int) -> None:
    """By `generate`, in one batch padded on the left."""
    batch = lm.tokenizer(list(prompts), return_tensors="pt", padding=True)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=lm.eos_token_id,
        pad_token_id=lm.tokenizer.pad_token_id,
    )
    with torch.inference_mode():
        output = lm.model.generate(**batch, generation_config=config)  # type: ignore[operator]
    lm.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def decoded(lm: LanguageModel, prompts: Sequence[str], max_tokens: int) -> None:
    """By factedit.decoding."""
    ids = [lm.tokenizer(prompt)["input_ids"] for prompt in prompts]
    for found in decode(lm, ids, max_tokens, max_rows=len(prompts)):
        lm.tokenizer.decode(found.tokens)


def timed(answer: Callable[[Sequence[str]], None], prompts: Sequence[str], batch: int) -> list[float]:
    """Seconds of each batch, after one that does not count."""
    answer(prompts[-batch:])
    seconds = []
    for at in range(0, len(prompts), batch):
        started = time.perf_counter()
        answer(prompts[at : at + batch])
        seconds.append(time.perf_counter() - started)
    return seconds


def main(folder: Path, batch: int, max_tokens: int) -> None:
    lm = load_model(folder, device="cpu")
    prompts: list[str] = json.load(sys.stdin)
    ways = {"generate": generated, "decode": decoded}
    found = {
        name: timed(partial(way, lm, max_tokens=max_tokens), prompts, batch) for name, way in ways.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
