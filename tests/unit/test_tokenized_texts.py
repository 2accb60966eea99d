"""A text that was tokenized is not tokenized again, unless it is a long one."""

from pathlib import Path
from typing import Any

from factedit.models import TEXT
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
