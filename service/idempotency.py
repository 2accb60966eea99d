"""Idempotency-Key: the first answer to a POST is stored in that POST's own transaction and given again."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.errors import Conflict, Invalid
from service.tables import NOW, IdempotencyKey


@dataclass(frozen=True, slots=True)
class Replay:
    """The stored first answer."""

    status_code: int
    response: dict[str, Any]
    headers: dict[str, str]


def begin(s: Session, actor: str, key: str, body_hash: str) -> Replay | None:
    """The earlier answer to this key, or None: then the caller acts, and stores its answer by `finish`.

    The key is locked until the transaction ends, so only one request acts under it.

    Raises:
        Conflict: the first request is still running. Invalid: the key was used with another body.
    """
    # An advisory lock outlives neither the transaction nor the connection: a killed API leaves nothing.
    lock = func.pg_try_advisory_xact_lock(func.hashtextextended(f"{actor}\n{key}", 0))
    if not s.scalar(select(lock)):
        raise Conflict(
            "A request with this Idempotency-Key is still running; repeat yours in a moment.",
            code="idempotency_in_progress",
            retry_after=1,
        )
    stored = s.get(IdempotencyKey, (actor, key))
    if stored is None:
        return None
    if stored.body_hash != body_hash:
        raise Invalid(
            "This Idempotency-Key was used with another request. Use a new key for a new request.",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )
    return Replay(stored.status_code, stored.response, stored.headers)


def finish(
    s: Session,
    actor: str,
    key: str,
    body_hash: str,
    status_code: int,
    response: dict[str, Any],
    headers: dict[str, str],
) -> None:
    """Store the answer beside what it acknowledges: both are committed, or neither."""
    s.add(
        IdempotencyKey(
            actor=actor,
            key=key,
            body_hash=body_hash,
            status_code=status_code,
            response=response,
            headers=dict(headers),
        )
    )
    s.flush()


def expire(s: Session, days: int) -> None:
    """Forget answers that are older."""
    kept_for = func.make_interval(0, 0, 0, days)
    s.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < NOW - kept_for))
