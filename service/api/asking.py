"""Questions to the predictor; damaged bytes that it finds are served no more."""

from typing import Any

import anyio.to_thread
import structlog

from service import versions
from service.api.dependencies import Parts
from service.predictor_client import Question, WeightsCorrupt

log = structlog.get_logger()


async def ask(parts: Parts, question: Question) -> list[dict[str, Any]]:
    """One answer a prompt. A version whose bytes are damaged is quarantined, never replaced by another.

    Raises:
        WeightsCorrupt, Unavailable, Invalid.
    """
    try:
        return await parts.predictor.ask(question)
    except WeightsCorrupt as damaged:
        await anyio.to_thread.run_sync(_quarantine, parts, damaged.digest)
        raise


def _quarantine(parts: Parts, digest: str) -> None:
    with parts.database.transaction() as s:
        found = versions.quarantine_digest(s, digest)
    log.error("quarantined", digest=digest, versions=found)
