"""Strict JSON: what Python's parser lets through but no honest client sends is refused.

A large body is parsed and checked on a thread, so that everybody else's request goes on meanwhile.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import anyio.to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope

MAX_DEPTH = 64
MAX_DIGITS = 300
MAX_KEYS = 64
LARGE = 16 << 10
"""Bytes; less is done by the time a thread has begun."""


class BadBody(HTTPException):
    """A body that is no strict JSON. An HTTPException, since FastAPI hides every other kind."""

    def __init__(self, code: str, detail: str, pointer: str = "", status_code: int = 400) -> None:
        super().__init__(status_code, detail)
        self.code, self.pointer = code, pointer


class StrictRequest(Request):
    """A request whose JSON is parsed by the rules below, and, if it is large, checked as well."""

    def __init__(self, scope: Scope, receive: Receive, field: Any) -> None:
        super().__init__(scope, receive)
        self._field = field  # of FastAPI, whose type has no public name
        self.faults: list[Any] = []
        """What is wrong with a large body's fields."""

    async def json(self) -> Any:
        """The body's value; of a large one the model of it, or what no model takes if it has `faults`."""
        if not hasattr(self, "_json"):
            raw = await self.body()
            large = len(raw) > LARGE
            self._json = await anyio.to_thread.run_sync(self._checked, raw) if large else parse(raw)
        return self._json

    def _checked(self, raw: bytes) -> Any:
        value, self.faults = self._field.validate(parse(raw), {}, loc=("body",))
        return object() if self.faults else value


class StrictRoute(APIRoute):
    """A route that reads its body strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            own = StrictRequest(request.scope, request.receive, self.body_field)
            try:
                return await handler(own)
            except RequestValidationError as error:
                if not own.faults:
                    raise
                others = [each for each in error.errors() if each["loc"][0] != "body"]
                raise RequestValidationError([*others, *own.faults]) from error

        return strict


def parse(raw: bytes) -> Any:
    """The JSON value.

    Raises:
        BadBody: bad UTF-8, no JSON, NaN or infinities, a doubled key, a number too long, too deep, too
            many keys, NUL or lone surrogates in any string.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadBody("invalid_encoding", f"The body is not UTF-8 (byte {error.start}).") from error
    try:
        value = json.loads(
            text,
            object_pairs_hook=_no_doubled_keys,
            parse_int=_number,
        )
    except RecursionError as error:
        raise BadBody("too_deep", f"The body is nested deeper than {MAX_DEPTH} levels.") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise BadBody("invalid_json", f"The body is not JSON: {error.msg} at {place}.") from error
    _check(value)
    return value


def _check(root: Any) -> None:
    """Depth, keys, numbers and strings, without recursion: the input is not ours."""
    levels = [_pairs([root])]
    keys: list[object] = []  # of the values whose insides are being looked at, the root's first
    while levels:
        for key, value in levels[-1]:
            if (fault := _fault(key)) is not None:
                raise BadBody(*fault, _pointer(keys), 422)
            if (fault := _fault(value)) is not None:
                raise BadBody(*fault, _pointer([*keys, key]), 422)
            if isinstance(value, dict | list):
                if len(levels) > MAX_DEPTH:
                    raise BadBody("too_deep", f"The body is nested deeper than {MAX_DEPTH} levels.")
                levels.append(_pairs(value))
                keys.append(key)
                break
        else:
            levels.pop()
            del keys[-1:]


def _pairs(value: dict[str, Any] | list[Any]) -> Iterator[tuple[object, Any]]:
    return iter(value.items()) if isinstance(value, dict) else enumerate(value)


def _fault(value: object) -> tuple[str, str] | None:
    """The code and message of what is wrong with a key or value itself, whatever is inside it."""
    if isinstance(value, str):
        if "\0" in value:
            return "invalid_text", "A string contains the character NUL; remove it."
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            return "invalid_text", "A string contains half of a surrogate pair; send whole characters."
    elif isinstance(value, float) and not math.isfinite(value):
        return "invalid_number", "Not a finite number of reasonable size; send one."
    elif isinstance(value, dict) and len(value) > MAX_KEYS:
        return "too_many_keys", f"An object has {len(value):,} keys; none that we take has over {MAX_KEYS}."
    return None


def _pointer(keys: Sequence[object]) -> str:
    """Of the value with the last key; the first is the root's own."""
    return "".join(f"/{escape(str(key))}" for key in keys[1:])


def escape(part: str) -> str:
    """One part of a JSON pointer (RFC 6901)."""
    return part.replace("~", "~0").replace("/", "~1")


def _no_doubled_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        doubled = Counter(key for key, _ in pairs).most_common(1)[0][0]
        shown = doubled[:100].encode("ascii", "backslashreplace").decode()
        raise BadBody("duplicate_key", f"The key {shown!r} stands twice in one object.")
    return value


def _number(digits: str) -> float:
    # No exception here, where nobody knows the place: an infinity, which the check below finds.
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf
