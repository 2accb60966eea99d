"""What can go wrong, as exceptions that know their HTTP status and how to mend it; the API words them."""

from collections.abc import Iterable
from typing import Any

LISTS = {
    "model": " GET /models lists those there are.",
    "relation": " GET /relations lists those there are.",
    "job": " GET /jobs lists those there are.",
    "version": " GET /models/{model}/versions lists those there are.",
}


class ServiceError(Exception):
    """A refusal that a caller can act on.

    Attributes:
        status: HTTP status. code: stable, for programs. title: what kind of thing it is.
        detail: what happened and what to do. pointer: JSON pointer into the request body.
        param: the name of the offending parameter. extra: further members of the answer.
        retry_after: seconds, for 429 and 503.
    """

    status = 400
    code = "bad_request"
    title = "The request can't be carried out"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        pointer: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.pointer = pointer
        self.param = param
        self.retry_after = retry_after
        self.extra = extra


class NotFound(ServiceError):
    status = 404
    code = "not_found"
    title = "Not found"

    def __init__(self, kind: str, name: str, nearest: Iterable[str] = (), **extra: Any) -> None:
        close = list(nearest)
        hint = f" Did you mean {', '.join(repr(n) for n in close)}?" if close else LISTS.get(kind, "")
        super().__init__(
            f"There is no {kind} {name!r}.{hint}",
            code=f"{kind.replace(' ', '_')}_not_found",
            nearest=close,
            **extra,
        )


class Conflict(ServiceError):
    status = 409
    code = "conflict"
    title = "Conflict with the present state"


class PreconditionFailed(ServiceError):
    status = 412
    code = "precondition_failed"
    title = "Precondition failed"


class Invalid(ServiceError):
    status = 422
    code = "invalid_request"
    title = "The request is not valid"


class TooMany(ServiceError):
    status = 429
    code = "too_many_requests"
    title = "Too many requests"


class Unavailable(ServiceError):
    status = 503
    code = "unavailable"
    title = "Not available right now"
