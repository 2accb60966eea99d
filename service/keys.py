"""API keys: shown once, stored as a hash."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.errors import Invalid, NotFound
from service.ids import new_id
from service.tables import NOW, ApiKey

Scope = Literal["predict", "edit", "promote", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class NoKey(Exception):
    """The API would be open to nobody."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks, and what they may do. `admin` may do everything."""

    id: str
    scopes: frozenset[str]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


def generate() -> tuple[str, str, str]:
    """(secret, prefix, hash) of a new key: `fe_<prefix>_<secret>`."""
    prefix = secrets.token_hex(4)
    secret = f"fe_{prefix}_{secrets.token_urlsafe(32)}"
    return secret, prefix, hash_of(secret)


def hash_of(secret: str) -> str:
    # The secret has 256 random bits, so a plain digest can't be guessed back; no slow hash is needed.
    return hashlib.sha256(secret.encode()).hexdigest()


def create(s: Session, name: str, scopes: Iterable[str]) -> tuple[ApiKey, str]:
    """A new key's row, and the secret that is never seen again.

    Raises:
        Invalid: an unknown scope, or none.
    """
    wanted = sorted(set(scopes))
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        raise Invalid(f"Scopes are {', '.join(SCOPES)}; not {', '.join(unknown) or 'none'}.", param="scopes")
    secret, prefix, digest = generate()
    key = ApiKey(id=new_id("key"), name=name, prefix=prefix, key_hash=digest, scopes=wanted)
    s.add(key)
    s.flush()
    return key, secret


def authenticate(s: Session, secret: str) -> Actor | None:
    """Who a key belongs to; None if it is unknown or revoked."""
    query = select(ApiKey).where(ApiKey.key_hash == hash_of(secret), ApiKey.revoked_at.is_(None))
    key = s.scalar(query)
    return None if key is None else Actor(id=key.id, scopes=frozenset(key.scopes))


def list_keys(s: Session) -> list[ApiKey]:
    return list(s.scalars(select(ApiKey).order_by(ApiKey.id)))


def revoke(s: Session, key_id: str) -> None:
    """Raises NotFound: no such key, or revoked already."""
    revoked = s.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=NOW)
        .returning(ApiKey.id)
    ).first()
    if revoked is None:
        raise NotFound("key", key_id)
