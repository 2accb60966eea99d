"""A text that was tokenized is not tokenized again, unless it is a long one."""

import gc
import weakref
from pathlib import Path
from typing import Any

from factedit.models import TEXT
from factedit.prompts import prompt_ids
from tests.support.tiny_models import PROMPT, tiny_model


def test_short_texts_are_tokenized_once(tmp_path: Path) -> None:
    lm, asked = tiny_model(tmp_path, "llama"), list[str]()
    tokenizer, prompt, long = lm.tokenizer, PROMPT.format("France"), " ".join(["Rome"] * TEXT)

    def counted(text: str) -> Any:
        asked.append(text)
        return tokenizer(text)

    lm.tokenizer = counted  # type: ignore[assignment]
    for _ in range(2):
        assert lm.ids_of(prompt) == tuple(tokenizer(prompt)["input_ids"])
        assert lm.ids_of(long) == tuple(tokenizer(long)["input_ids"])
    assert asked == [prompt, long, long]


def test_what_a_prompt_is_read_as_is_not_mistaken_for_it(tmp_path: Path) -> None:
    lm = tiny_model(tmp_path, "llama")
    prompt = PROMPT.format("France")
    plain = prompt_ids(lm, prompt)
    lm.reads = lambda text: f"Rome {text}"
    assert prompt_ids(lm, prompt) == list(lm.ids_of(f"Rome {prompt}")) != plain
    lm.reads = None
    assert prompt_ids(lm, prompt) == plain


def test_a_model_that_is_dropped_is_freed_at_once(tmp_path: Path) -> None:
    """Two of them may not fit, and what a cycle holds is freed some time later."""
    lm = tiny_model(tmp_path, "llama")
    lm.ids_of(PROMPT.format("France"))
    weights, dropped = weakref.ref(next(iter(lm.tensors.values()))), weakref.ref(lm)
    gc.collect()
    gc.disable()
    try:
        del lm
        assert dropped() is None
    finally:
        gc.enable()
    gc.collect()
    assert weights() is None
