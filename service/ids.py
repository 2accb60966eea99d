"""Typed identifiers: a kind, an underscore and a UUIDv7, so that ids sort by their time of birth."""

import re
from typing import Literal

import uuid_utils

Kind = Literal["mdl", "ver", "job", "edt", "prb", "key", "req"]

_ID = re.compile(r"(mdl|ver|job|edt|prb|key|req)_[0-9a-f]{32}")


def new_id(kind: Kind) -> str:
    return f"{kind}_{uuid_utils.uuid7().hex}"


def is_id(value: str, kind: Kind) -> bool:
    return _ID.fullmatch(value) is not None and value.startswith(f"{kind}_")
