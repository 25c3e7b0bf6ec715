"""Connection against a real TLS server: requests, answers, errors, bounds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from loopback_servers import (
    HEADERS,
    Grid,
    Sent,
    Told,
    assert_understandable,
    error_response,
    hasty,
    raw_server,
)
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from officegrid.coordinator.pki import Pki
from officegrid.core.errors import (
    AuthError,
    ConflictError,
    ForbiddenError,
    LimitError,
    NotFoundError,
    OfficeGridError,
    UnavailableError,
    VersionError,
)
from officegrid.transport.http import Connection
from officegrid.wire.versions import PROTOCOL, PROTOCOL_HEADER

# --- the happy path


def test_a_call_carries_body_parameters_token_and_protocol(
    grid: Grid, connection: Connection
) -> None:
    told = connection.call(
        "POST", "/v1/claim", body=Sent(text="ä"), params={"a": 1, "b": "x y"}, reply=Told
    )
    assert told == Told(path="/v1/claim", query={"a": "1", "b": "x y"}, received=13)
    [(method, _, headers)] = grid.requests
    assert method == "POST"
    assert headers["content-type"] == "application/json"
    assert headers[PROTOCOL_HEADER] == str(PROTOCOL)
    assert headers["user-agent"].startswith("officegrid/")
    assert grid.bodies == ['{"text":"ä"}'.encode()]


def test_a_call_without_reply_gives_nothing(grid: Grid, connection: Connection) -> None:
    grid.answer = lambda _: Response(status_code=204, headers=HEADERS)
    assert connection.call("POST", "/v1/release", body=Sent(text="")) is None


def test_uploads_of_bytes_lists_and_iterators(grid: Grid, connection: Connection) -> None:
    parts = [b"a" * 100_000, b"", b"b" * 50_000]
    for data in (b"".join(parts), parts, iter(parts)):
        told = connection.upload("/v1/objects/x", data, reply=Told)
        assert told.received == 150_000
    assert set(grid.bodies) == {b"".join(parts)}
    assert {method for method, _, _ in grid.requests} == {"PUT"}


def test_a_download_is_exactly_what_was_sent(grid: Grid, connection: Connection) -> None:
    content = bytes(range(256)) * 1000
    grid.answer = lambda _: Response(content, headers=HEADERS)
    assert connection.download("/v1/objects/x") == content
    assert connection.download("/v1/objects/x", {"records": "1-2"}, max_bytes=256_000) == content
    assert grid.requests[0][2]["accept-encoding"] == "identity"


def test_one_connection_serves_many_threads_and_is_reused(
    grid: Grid, connection: Connection
) -> None:
    peers: set[tuple[str, int]] = set()
    results: list[int] = []

    def answer(request: Request) -> Response:
        assert request.client is not None
        peers.add((request.client.host, request.client.port))
        told = {"path": "", "query": {}, "received": int(request.query_params["n"])}
        return JSONResponse(told, headers=HEADERS)

    grid.answer = answer

    def work(first: int) -> None:
        for n in range(first, first + 25):
            told = connection.call("GET", "/v1/x", params={"n": n}, reply=Told)
            if told.received == n:
                results.append(n)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 25, 50, 75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(results) == list(range(100))
    assert len(peers) <= 4


# --- lines


def test_lines_arrive_as_they_are_sent(grid: Grid, connection: Connection) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"n":1}\n{"n":'
        yield b"2}\r\n\n"
        assert grid.release.wait(10)
        yield b"last, without an end"

    grid.answer = lambda _: StreamingResponse(body(), headers=HEADERS)
    lines = connection.stream_lines("/v1/events", {"after": 3})
    assert [next(lines) for _ in range(3)] == [b'{"n":1}', b'{"n":2}', b""]
    grid.release.set()  # only now may the server go on: the lines above did not wait for the end
    assert list(lines) == [b"last, without an end"]


def test_a_silent_stream_is_given_up(grid: Grid, connection: Connection) -> None:
    def body() -> Iterator[bytes]:
        yield b"one\n"
        grid.release.wait(10)

    grid.answer = lambda _: StreamingResponse(body(), headers=HEADERS)
    lines = connection.stream_lines("/v1/events", timeout_s=0.3)
    assert next(lines) == b"one"
    with pytest.raises(UnavailableError, match="in time") as caught:
        next(lines)
    assert_understandable(caught.value)


def test_a_stream_that_breaks_off_is_told(pki: Pki) -> None:
    head = f"HTTP/1.1 200 OK\r\n{PROTOCOL_HEADER}: {PROTOCOL}\r\nTransfer-Encoding: chunked\r\n\r\n"

    def handle(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(head.encode() + b"4\r\none\n\r\n")

    with raw_server(handle, pki) as port, hasty(f"https://127.0.0.1:{port}", pki.ca_pem) as broken:
        lines = broken.stream_lines("/v1/events")
        assert next(lines) == b"one"
        with pytest.raises(UnavailableError, match="broke off") as caught:
            next(lines)
    assert_understandable(caught.value)


def test_a_line_without_end_is_refused(
    grid: Grid, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("officegrid.transport.http.MAX_LINE_BYTES", 100_000)

    def body() -> Iterator[bytes]:
        while not grid.release.is_set():
            yield b"x" * 10_000

    grid.answer = lambda _: StreamingResponse(body(), headers=HEADERS)
    with pytest.raises(LimitError, match="too much"):
        next(connection.stream_lines("/v1/events"))
    grid.release.set()


def test_a_stream_that_is_refused_raises_its_error(grid: Grid, connection: Connection) -> None:
    grid.answer = lambda _: error_response(ForbiddenError("Not yours.", "a viewer", "ask"))
    with pytest.raises(ForbiddenError, match="Not yours"):
        next(connection.stream_lines("/v1/events"))


# --- errors of the coordinator


def test_an_error_arrives_with_its_sentences(grid: Grid, connection: Connection) -> None:
    grid.answer = lambda _: error_response(ConflictError("No.", "It ended.", "Make a new one."))
    with pytest.raises(ConflictError) as caught:
        connection.call("POST", "/v1/jobs/1/hold")
    assert str(caught.value) == "No.\nWhy: It ended.\nFix: Make a new one."
    assert len(grid.requests) == 1


def test_a_wrong_token_is_an_auth_error(grid: Grid) -> None:
    with hasty(grid.url, grid.pki.ca_pem) as stranger, pytest.raises(AuthError, match="Who"):
        stranger.call("GET", "/v1/x", reply=Told)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, UnavailableError),
        (401, AuthError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (413, LimitError),
        (418, UnavailableError),
        (500, UnavailableError),
    ],
)
def test_bare_error_pages_are_put_into_words_and_not_retried(
    grid: Grid, connection: Connection, status: int, kind: type[OfficeGridError]
) -> None:
    page = "<html><h1>Oops</h1></html>"
    grid.answer = lambda _: (
        RedirectResponse("/login") if status == 302 else HTMLResponse(page, status)
    )
    with pytest.raises(kind, match="HTTP status") as caught:
        connection.call("GET", "/v1/x", reply=Told)
    assert type(caught.value) is kind
    assert "Oops" not in str(caught.value)
    assert_understandable(caught.value)
    assert len(grid.requests) == 1


# --- answers that cannot be right


@pytest.mark.parametrize("body", [b"", b"garbage", b'{"path": 1}', b"[]", b"\xff\xfe"])
def test_an_answer_of_the_wrong_form_is_a_version_error(
    grid: Grid, connection: Connection, body: bytes
) -> None:
    grid.answer = lambda _: Response(body, headers=HEADERS)
    with pytest.raises(VersionError, match="cannot be understood") as caught:
        connection.call("GET", "/v1/x", reply=Told)
    assert_understandable(caught.value)


@pytest.mark.parametrize("stated", [None, "", "one", "-1", "\u00b2"])
def test_who_does_not_state_the_protocol_is_no_coordinator(
    grid: Grid, connection: Connection, stated: str | None
) -> None:
    headers = {} if stated is None else {PROTOCOL_HEADER: stated}
    grid.answer = lambda _: HTMLResponse("<html>please log in</html>", headers=headers)
    with pytest.raises(UnavailableError, match="is not an Office Grid coordinator") as caught:
        connection.call("GET", "/v1/x")
    assert_understandable(caught.value)
    assert len(grid.requests) == 1


def test_an_older_coordinator_is_told_apart(grid: Grid, connection: Connection) -> None:
    grid.answer = lambda _: JSONResponse({}, headers={PROTOCOL_HEADER: str(PROTOCOL - 1)})
    with pytest.raises(VersionError, match="older"):
        connection.call("GET", "/v1/x")
    grid.answer = lambda _: JSONResponse({}, headers={PROTOCOL_HEADER: str(PROTOCOL + 1)})
    connection.call("GET", "/v1/x")  # a newer one decides itself whom it still serves


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversize_download_is_stopped(grid: Grid, connection: Connection, chunked: bool) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        while not grid.release.is_set() and sent < 500_000_000:
            sent += 100_000
            yield b"x" * 100_000

    whole = Response(b"x" * 100_001, headers=HEADERS)
    grid.answer = lambda _: StreamingResponse(body(), headers=HEADERS) if chunked else whole
    with pytest.raises(LimitError, match="too much") as caught:
        connection.download("/v1/objects/x", max_bytes=100_000)
    grid.release.set()
    assert_understandable(caught.value)
    assert sent < 50_000_000
    grid.answer = lambda _: Response(b"y" * 100_000, headers=HEADERS)
    assert len(connection.download("/v1/objects/x", max_bytes=100_000)) == 100_000


def test_a_reply_that_drips_is_bounded_in_time(grid: Grid, connection: Connection) -> None:
    def body() -> Iterator[bytes]:
        while not grid.release.wait(0.05):
            yield b" "

    grid.answer = lambda _: StreamingResponse(body(), headers=HEADERS)
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="in time"):
        connection.call("GET", "/v1/x", timeout_s=0.5)
    grid.release.set()
    assert time.monotonic() - started < 5
