"""What every request passes first: its id, its size, its key. Before any of its body is read."""

from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import keys
from service.api import problems
from service.api.body import BadBody
from service.database import Database, DatabaseAway
from service.ids import new_id
from service.keys import Actor
from service.settings import Settings

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/openapi.json", "/docs"})
ANYONE = Actor(id="anonymous", scopes=frozenset({"admin"}))
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
ID_HEADER = "X-Request-Id"


class _Refused(Exception):
    def __init__(self, response: JSONResponse) -> None:
        self.response = response


class Doorman:
    """ASGI middleware; sets `request_id` and `actor` in the request's state."""

    def __init__(self, app: ASGIApp, settings: Settings, database: Database) -> None:
        self._app, self._settings, self._database = app, settings, database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (ID_HEADER.lower().encode(), request_id.encode()),
                ]
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_size(headers, request_id)
            self._check_characters(scope, request_id)
            if scope["path"] not in OPEN_PATHS:
                state["actor"] = await self._actor(headers, request_id)
            self._check_kind(scope, headers, request_id)
        except _Refused as refused:
            await refused.response(scope, receive, send_with_id)
            return
        await self._app(scope, self._capped(receive), send_with_id)

    def _check_size(self, headers: Headers, request_id: str) -> None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._settings.max_body_bytes:
            raise _Refused(
                problems.problem(
                    status=413,
                    code="content_too_large",
                    title="Content Too Large",
                    detail=self._too_large(),
                    request_id=request_id,
                    headers={"Connection": "close"},
                )
            )

    def _check_characters(self, scope: Scope, request_id: str) -> None:
        # PostgreSQL knows no NUL, and no name of ours has one.
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise _Refused(
                problems.problem(
                    status=422,
                    code="invalid_text",
                    title="The request is not valid",
                    detail="The address contains the character NUL (%00); remove it.",
                    request_id=request_id,
                )
            )

    def _check_kind(self, scope: Scope, headers: Headers, request_id: str) -> None:
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
        if scope["method"] in WITH_BODY and has_body and not is_json:
            raise _Refused(
                problems.problem(
                    status=415,
                    code="unsupported_media_type",
                    title="Unsupported Media Type",
                    detail="Send JSON, with the header Content-Type: application/json.",
                    request_id=request_id,
                )
            )

    async def _actor(self, headers: Headers, request_id: str) -> Actor:
        if self._settings.insecure_no_auth:
            return ANYONE
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        actor = None
        if scheme.lower() == "bearer" and secret:
            try:
                actor = await run_in_threadpool(self._look_up, secret.strip())
            except DatabaseAway as error:
                raise _Refused(problems.away(request_id)) from error
        if actor is None:
            raise _Refused(
                problems.problem(
                    status=401,
                    code="invalid_api_key" if secret else "missing_api_key",
                    title="Unauthorized",
                    detail="Send a valid key as `Authorization: Bearer fe_…`; "
                    "whoever runs this service makes one with `factedit key create`.",
                    request_id=request_id,
                    headers={"WWW-Authenticate": "Bearer"},
                )
            )
        return actor

    def _look_up(self, secret: str) -> Actor | None:
        with self._database.transaction() as s:
            return keys.authenticate(s, secret)

    def _capped(self, receive: Receive) -> Receive:
        """For bodies that don't say their length."""
        taken = 0

        async def capped() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._settings.max_body_bytes:
                raise BadBody("content_too_large", self._too_large(), status_code=413)
            return message

        return capped

    def _too_large(self) -> str:
        return f"A request has at most {self._settings.max_body_bytes:,} bytes; send smaller batches."
