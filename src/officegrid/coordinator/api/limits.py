"""ASGI middleware: request size limits and the protocol version, before any route runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from officegrid import __version__
from officegrid.core.errors import LimitError, OfficeGridError, VersionError
from officegrid.wire.versions import PROTOCOL, PROTOCOL_HEADER, PROTOCOL_OLDEST

MB = 1024 * 1024
BODY_LIMITS: dict[str, int] = {
    "/v1/commit": 128 * MB,
    "/v1/datasets": 64 * MB,
    "/v1/objects/missing": 4 * MB,
}
BODY_LIMIT = 2 * MB
UNKNOWN_LIMIT = MB // 16
OBJECTS = "/v1/objects/"  # streamed; the object store has its own limit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class _TooLargeError(Exception):
    pass


class LimitsMiddleware:
    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            _check_protocol(headers.get(PROTOCOL_HEADER.encode()))
            limit = _limit_for(scope["path"], scope["method"])
            if b"authorization" not in headers:  # nobody unknown makes us hold much in memory
                limit = UNKNOWN_LIMIT
            length = headers.get(b"content-length", b"")
            if limit is not None and length.isdigit() and int(length) > limit:
                raise _too_large(limit)
        except OfficeGridError as error:
            await _answer(send, error)
            return
        await self._limited(scope, receive, send, limit)

    async def _limited(self, scope: Scope, receive: Receive, send: Send, limit: int | None) -> None:
        received, answered, too_much = 0, False, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal received, too_much
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if limit is not None and received > limit:
                    too_much = True
                    raise _TooLargeError
            return message

        async def marked(message: MutableMapping[str, Any]) -> None:
            nonlocal answered
            if too_much and not answered:
                return  # what the application says of a body that broke off
            if message["type"] == "http.response.start":
                answered = True
                message.setdefault("headers", []).append(
                    (PROTOCOL_HEADER.encode(), str(PROTOCOL).encode())
                )
            await send(message)

        with contextlib.suppress(_TooLargeError):
            await self._app(scope, counted, marked)
        if too_much and not answered:
            await _answer(send, _too_large(limit or 0))


def _limit_for(path: str, method: str) -> int | None:
    if path in BODY_LIMITS:
        return BODY_LIMITS[path]
    return None if method == "PUT" and path.startswith(OBJECTS) else BODY_LIMIT


def _check_protocol(stated: bytes | None) -> None:
    if stated is None:
        return
    text = stated.decode("latin-1")
    if not text.isdigit() or not PROTOCOL_OLDEST <= int(text) <= PROTOCOL:
        raise VersionError(
            "This program and the coordinator do not speak the same protocol.",
            f"The program speaks {text[:20]}, the coordinator {PROTOCOL_OLDEST} to {PROTOCOL} "
            f"(release {__version__}).",
            "Install the same release of officegrid on both.",
        )


def _too_large(limit: int) -> LimitError:
    size = f"{limit // MB} MB" if limit >= MB else f"{limit // 1024} KB"
    return LimitError("The request is too large.", f"At most {size} are taken at this address.")


async def _answer(send: Send, error: OfficeGridError) -> None:
    detail = {"code": error.code, "what": error.what, "why": error.why, "fix": error.fix}
    body = json.dumps({"error": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (PROTOCOL_HEADER.encode(), str(PROTOCOL).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
