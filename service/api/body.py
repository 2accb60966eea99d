"""Strict JSON: what Python's parser lets through but no honest client sends is refused."""

import json
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

MAX_DEPTH = 64
MAX_DIGITS = 300


class BadBody(HTTPException):
    """A body that is no strict JSON. An HTTPException, since FastAPI hides every other kind."""

    def __init__(self, code: str, detail: str, pointer: str = "", status_code: int = 400) -> None:
        super().__init__(status_code, detail)
        self.code, self.pointer = code, pointer


class StrictRequest(Request):
    """A request whose JSON is parsed by the rules below."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route that reads its body strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def parse(raw: bytes) -> Any:
    """The JSON value.

    Raises:
        BadBody: bad UTF-8, no JSON, NaN or infinities, a doubled key, a number too long, too deep,
            NUL or lone surrogates in any string.
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
    """Depth, numbers and strings, without recursion: the input is not ours."""
    open_values: list[tuple[Any, str, int]] = [(root, "", 1)]
    while open_values:
        value, pointer, depth = open_values.pop()
        if isinstance(value, str):
            _check_text(value, pointer)
        elif isinstance(value, float) and not math.isfinite(value):
            message = "Not a finite number of reasonable size; send one."
            raise BadBody("invalid_number", message, pointer, 422)
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise BadBody("too_deep", f"The body is nested deeper than {MAX_DEPTH} levels.")
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in pairs:
                if isinstance(key, str):
                    _check_text(key, pointer)
                open_values.append((item, f"{pointer}/{escape(str(key))}", depth + 1))


def _check_text(text: str, pointer: str) -> None:
    if "\0" in text:
        raise BadBody("invalid_text", "A string contains the character NUL; remove it.", pointer, 422)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        message = "A string contains half of a surrogate pair; send whole characters."
        raise BadBody("invalid_text", message, pointer, 422)


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
