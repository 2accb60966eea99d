"""A dry run asks the base what it can in a few seconds, and leaves the rest open."""

from typing import Any

import anyio
import pytest

from service import planning
from service.errors import Unavailable
from service.planning import PlannedEdit, ask_base
from service.predictor_client import Question


def planned(count: int) -> list[PlannedEdit]:
    return [
        PlannedEdit("update", f"Land {i}", "capital", "Rome", None, f"Land {i}:", [], [], [], [])
        for i in range(count)
    ]


def asked(edits: list[PlannedEdit], slow_from: int, *, refuse: bool = False) -> list[str | None]:
    """What is known of the edits when the predictor no longer answers from that call on."""
    calls = 0

    async def ask(question: Question) -> list[dict[str, Any]]:
        nonlocal calls
        calls += 1
        if calls >= slow_from:
            if refuse:
                raise Unavailable("Not now.")
            await anyio.sleep(60)
        return [{"text": f" {prompt}"} for prompt in question.prompts]

    anyio.run(ask_base, edits, ask, "r", None, 10)
    return [edit.current_answer for edit in edits]


@pytest.mark.parametrize("refuse", [False, True])
def test_what_was_answered_in_time_is_told_and_the_rest_is_left_open(
    monkeypatch: pytest.MonkeyPatch, refuse: bool
) -> None:
    monkeypatch.setattr(planning, "ASK_SECONDS", 0.1)
    found = asked(planned(35), 3, refuse=refuse)
    assert found == [f" Land {i}:" for i in range(20)] + [None] * 15
