"""Every refusal as application/problem+json (RFC 9457), readable by OpenAI's clients too."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.api.body import BadBody, escape
from service.database import DatabaseAway, NotMigrated
from service.errors import ServiceError

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 100
METHODS = ("GET", "POST", "PUT", "DELETE")

log = structlog.get_logger()


class FieldError(BaseModel):
    """One thing that is wrong in a request."""

    pointer: str | None = Field(description="JSON pointer into the body; null for a header or a parameter.")
    code: str
    message: str
    param: str | None = Field(
        default=None, description="The name of the header, or of the parameter in the address."
    )


class OpenAIError(BaseModel):
    """The same in the form that OpenAI's clients read."""

    message: str
    type: str
    code: str
    param: str | None


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:factedit:problem:relation_not_found"])
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldError]
    error: OpenAIError


def problem(
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    request_id: str,
    errors: list[dict[str, Any]] | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """The response; `extra` members stand beside the standard ones."""
    body = {
        **(extra or {}),
        "type": f"urn:factedit:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "errors": (errors or [])[:MAX_ERRORS],
        "error": {"message": detail, "type": _openai_type(status), "code": code, "param": param},
    }
    return JSONResponse(body, status, dict(headers or {}), MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Have every exception of `app` answered as a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DatabaseAway, _away)
    app.add_exception_handler(NotMigrated, _unforeseen)
    app.add_exception_handler(SQLAlchemyError, _unforeseen)
    app.add_exception_handler(IntegrityError, _raced)
    app.add_exception_handler(Exception, _outermost)


def from_service_error(error: ServiceError, request_id: str) -> JSONResponse:
    extra = dict(error.extra)
    errors = extra.pop("errors", None)
    if errors is None and (error.pointer is not None or error.param is not None):
        entry = {"pointer": error.pointer, "code": error.code, "message": error.detail}
        errors = [entry if error.pointer is not None else {**entry, "param": error.param}]
    headers = extra.pop("headers", {})
    if error.retry_after is not None:
        headers = {**headers, "Retry-After": str(error.retry_after)}
    return problem(
        status=error.status,
        code=error.code,
        title=error.title,
        detail=error.detail,
        request_id=request_id,
        errors=errors,
        param=error.param or error.pointer,
        headers=headers,
        extra=extra,
    )


AWAY_DETAIL = (
    "The database does not answer at the moment. If this was a change, it may or may not have been made: "
    "look, or repeat it under the same Idempotency-Key."
)


def away(request_id: str) -> JSONResponse:
    """The database does not answer."""
    return problem(
        status=503,
        code="database_away",
        title="Not available right now",
        detail=AWAY_DETAIL,
        request_id=request_id,
        headers={"Retry-After": "2"},
    )


def request_id(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return from_service_error(error, request_id(request))


async def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    entries = [_entry(raw) for raw in error.errors()[:MAX_ERRORS]]
    first = entries[0]
    where = first["pointer"] if first["pointer"] is not None else first["param"]
    more = f" (and {len(entries) - 1} more{' at least' if len(entries) == MAX_ERRORS else ''})"
    return problem(
        status=422,
        code="invalid_request",
        title="The request is not valid",
        detail=f"{where or 'The body'}: {first['message']}{more if len(entries) > 1 else ''}",
        request_id=request_id(request),
        errors=entries,
        param=where or None,
    )


def _entry(raw: Mapping[str, Any]) -> dict[str, Any]:
    place, *path = raw["loc"]
    message = str(raw["msg"]).removeprefix("Value error, ")
    if raw["type"] == "extra_forbidden":
        message = "There is no such field; leave it out, or look for its name in /docs."
    if raw["type"] == "missing" and place == "body" and not path:
        message = "Send a JSON object, with Content-Type: application/json."
    if place != "body":
        param = str(path[-1]) if path else str(place)
        return {"pointer": None, "code": raw["type"], "message": message, "param": param}
    # The branches of the one union, `blocks`, are named in `loc`; they are no part of the body.
    parts = path if path[:1] != ["blocks"] else [part for part in path if not _is_branch(part)]
    pointer = "".join(f"/{escape(str(part))}" for part in parts)
    return {"pointer": pointer, "code": raw["type"], "message": message}


def _is_branch(part: object) -> bool:
    return isinstance(part, str) and ("[" in part or "(" in part)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    code, detail, errors = title.lower().replace(" ", "_"), str(error.detail), None
    headers = error.headers
    if isinstance(error, BadBody):
        code = error.code
        detail = f"{error.pointer}: {detail}" if error.pointer else detail
        errors = [{"pointer": error.pointer, "code": error.code, "message": str(error.detail)}]
    elif error.status_code == 404:
        detail = f"There is nothing at {request.url.path}; see /docs for what there is."
    elif error.status_code == 405:
        allowed = ", ".join(_methods(request))
        headers = {"Allow": allowed}
        detail = f"{request.method} is not possible at {request.url.path}; possible: {allowed}."
    return problem(
        status=error.status_code,
        code=code,
        title=title,
        detail=detail,
        request_id=request_id(request),
        errors=errors,
        headers=headers,
    )


def _methods(request: Request) -> list[str]:
    """Those that any route has at this address: the framework names only its first route's."""
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _away(request: Request, error: Exception) -> JSONResponse:
    log.warning("database_away", error=str(error))
    return away(request_id(request))


async def _raced(request: Request, error: Exception) -> JSONResponse:
    # What is there already is refused in better words; here it came between our look and our write.
    log.info("write_raced", request_id=request_id(request))
    return problem(
        status=409,
        code="conflict",
        title="Conflict with the present state",
        detail="Somebody else wrote the same at this very moment; nothing of yours was stored. Look again.",
        request_id=request_id(request),
    )


async def _outermost(request: Request, error: Exception) -> JSONResponse:
    """Outside of service.api.doorman, which gives every other response its id."""
    response = await _unforeseen(request, error)
    response.headers["X-Request-Id"] = request_id(request)
    return response


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    # What went wrong is for the log only: its text may hold a path, a statement, a user's words.
    log.error("request_broke", request_id=request_id(request), exc_info=error)
    return problem(
        status=500,
        code="internal",
        title="Something broke here",
        detail="This is our fault, not yours. Report the request_id to whoever runs this service.",
        request_id=request_id(request),
    )


def _openai_type(status: int) -> str:
    return {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        409: "conflict_error",
        429: "rate_limit_error",
    }.get(status, "server_error" if status >= 500 else "invalid_request_error")
