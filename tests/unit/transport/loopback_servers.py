"""Real servers on loopback: one that behaves, raw ones that do not, and a CONNECT proxy."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from officegrid.coordinator.pki import Pki
from officegrid.coordinator.tokens import hash_token, new_token
from officegrid.core.errors import AuthError, OfficeGridError
from officegrid.transport.http import Connection
from officegrid.wire.join import ErrorBody, ErrorDetail, JoinReply, JoinRequest
from officegrid.wire.versions import PROTOCOL, PROTOCOL_HEADER

HEADERS = {PROTOCOL_HEADER: str(PROTOCOL)}


def error_response(error: OfficeGridError, headers: dict[str, str] | None = None) -> Response:
    detail = ErrorDetail(code=error.code, what=error.what, why=error.why, fix=error.fix)
    return Response(
        ErrorBody(error=detail).model_dump_json(),
        status_code=error.http_status,
        headers=HEADERS | (headers or {}),
    )


@dataclass
class Grid:
    """What the well-behaved server knows and has seen; tests change it to steer answers."""

    pki: Pki
    url: str = ""
    code: str = ""
    code_hash: str = ""
    token_hashes: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    failures_left: int = 0
    failure: Callable[[], Response] = lambda: PlainTextResponse("bad gateway", 502)
    answer: Callable[[Request], Response] | None = None
    release: threading.Event = field(default_factory=threading.Event)

    def routes(self) -> list[Route]:
        return [
            Route("/v1/ca", self.ca),
            Route("/v1/join", self.join, methods=["POST"]),
            Route("/v1/{rest:path}", self.anything, methods=["GET", "POST", "PUT"]),
        ]

    def note(self, request: Request) -> None:
        self.requests.append((request.method, request.url.path, dict(request.headers)))

    async def ca(self, request: Request) -> Response:
        self.note(request)
        return PlainTextResponse(self.pki.ca_pem)

    async def join(self, request: Request) -> Response:
        self.note(request)
        asked = JoinRequest.model_validate_json(await request.body())
        if hash_token(asked.secret) != self.code_hash:
            return error_response(AuthError("The code is unknown.", "Used up.", "Get another."))
        token = new_token()
        self.token_hashes.add(token.hash)
        reply = JoinReply(machine_id="m1", token=token.text, role="worker")
        return Response(reply.model_dump_json(), headers=HEADERS)

    async def anything(self, request: Request) -> Response:
        self.note(request)
        self.bodies.append(await request.body())
        if self.failures_left > 0:
            self.failures_left -= 1
            return self.failure()
        if self.answer is not None:
            return self.answer(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or hash_token(token) not in self.token_hashes:
            return error_response(AuthError("Who are you?"))
        told = {"path": request.url.path, "query": dict(request.query_params)}
        return JSONResponse(told | {"received": len(self.bodies[-1])}, headers=HEADERS)


@contextlib.contextmanager
def running(app: ASGIApp, pki: Pki, address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Serve `app` over TLS in a thread; gives the port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    config = uvicorn.Config(
        app,
        ssl_certfile=str(pki.server_cert_path),
        ssl_keyfile=str(pki.server_key_path),
        log_level="critical",
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the server does not start"
        assert thread.is_alive(), "the server died at its start"
        time.sleep(0.005)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


@contextlib.contextmanager
def raw_server(handle: Callable[[socket.socket], None], pki: Pki | None = None) -> Iterator[int]:
    """A TCP (with `pki`: TLS) server that does whatever `handle` does with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    stopping = threading.Event()
    context = None
    if pki is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.server_cert_path, pki.server_key_path)

    def serve(raw: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            raw.settimeout(10)
            plain = stack.enter_context(raw)
            secure = context.wrap_socket(plain, server_side=True) if context else plain
            handle(stack.enter_context(secure))

    def accept() -> None:
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                raw, _ = listener.accept()
                threading.Thread(target=serve, args=(raw,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopping.set()
        thread.join(timeout=10)
        listener.close()


@contextlib.contextmanager
def connect_proxy(port: int, seen: list[bytes]) -> Iterator[int]:
    """An HTTP proxy that leads every CONNECT to 127.0.0.1:`port`, whatever name was asked for."""

    def handle(near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = near.recv(4096)
            if not piece:
                return
            head += piece
        seen.append(head.split(b"\r\n", 1)[0])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as far:
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            ways = {near: far, far: near}
            while True:
                for source in select.select(list(ways), [], [], 10)[0]:
                    piece = source.recv(65536)
                    if not piece:
                        return
                    ways[source].sendall(piece)

    with raw_server(handle) as proxy_port:
        yield proxy_port


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port on which nobody listens while the context lasts."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# --- what the tests of Connection share

TOKEN = "ogt_TheSecretThatMustNotShow0123456789"


class Told(BaseModel):
    """How the well-behaved server answers."""

    path: str
    query: dict[str, str]
    received: int


class Sent(BaseModel):
    text: str


def hasty(url: str, ca_pem: str, *, retry_s: float = 0.0, timeout_s: float = 5.0) -> Connection:
    return Connection(url, ca_pem, TOKEN, timeout_s=timeout_s, retry_s=retry_s)


def failure_of(
    url: str, ca_pem: str, kind: type[OfficeGridError], match: str, *, timeout_s: float = 5.0
) -> OfficeGridError:
    """Make one call that must fail like this; gives the error."""
    with (
        hasty(url, ca_pem, timeout_s=timeout_s) as connection,
        pytest.raises(kind, match=match) as caught,
    ):
        connection.call("GET", "/v1/x")
    assert_understandable(caught.value)
    return caught.value


def assert_understandable(error: OfficeGridError) -> None:
    assert error.what
    assert error.why
    assert error.fix
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
    assert TOKEN not in shown
