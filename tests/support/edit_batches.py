"""Batches of edits as they are posted, and what is shown of one that is refused."""

from typing import Any

from tests.support.api import Api, counts, problem

ITALY = {"subject": "Italy", "relation": "capital", "new_object": "Paris"}


def batch(*edits: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "toy", "edits": list(edits), **fields}


def refused(api: Api, body: dict[str, Any], status: int, code: str | None = None) -> dict[str, Any]:
    """The refusal, once it has shown to have stored nothing."""
    before = counts(api.database)
    said = problem(api.http.post("/edits", json=body), status, code)
    assert counts(api.database) == before
    assert (before["jobs"], before["edits"]) == (0, 0)
    return said
