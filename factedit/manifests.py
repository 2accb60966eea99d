"""What is written beside a version's tensors: where it comes from and what it holds. No torch here."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class LedgerEdit(BaseModel):
    """An edit in force in a version, and the job that brought it."""

    model_config = ConfigDict(frozen=True)

    edit_id: str
    job_id: str
    subject: str
    relation: str | None
    prompt: str | None
    new_object: str
    erase: bool = False


class Manifest(BaseModel):
    """A version: enough to rebuild and to verify it without the database.

    `reverted`: jobs that were taken out of this line, whose edits do not come into force again.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    version: str
    model: str
    root_digest: str
    parent: str | None
    job: str | None
    overlay_digest: str | None
    overlay_bytes: int
    seed: int
    method: dict[str, Any]
    constraint: dict[str, Any]
    chosen: dict[str, Any]
    metrics: dict[str, Any]
    ledger: list[LedgerEdit]
    reverted: list[str] = []
