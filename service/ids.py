"""Typed identifiers: a kind, an underscore and a UUIDv7, so that ids sort by their time of birth."""

import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Literal

import uuid_utils

Kind = Literal["mdl", "ver", "job", "edt", "prb", "key", "req"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ID = re.compile(r"(mdl|ver|job|edt|prb|key|req)_[0-9a-f]{32}")


def new_id(kind: Kind, born: datetime | None = None) -> str:
    """`born`: by the database's clock, where lists are in the order of these ids; else by this machine's."""
    return f"{kind}_{uuid_utils.uuid7().hex if born is None else _uuid7_of(born)}"


def _uuid7_of(born: datetime) -> str:
    """With the microseconds in it too (RFC 9562, 6.2, method 3), so that they sort within a millisecond."""
    milliseconds, microseconds = divmod((born - _EPOCH) // timedelta(microseconds=1), 1000)
    fraction = microseconds * 4096 // 1000
    return f"{milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62):032x}"


def is_id(value: str, kind: Kind) -> bool:
    return _ID.fullmatch(value) is not None and value.startswith(f"{kind}_")
