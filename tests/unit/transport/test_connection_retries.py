"""When Connection tries again, when it does not, and when it stops."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate

import pytest
from loopback_servers import (
    HEADERS,
    Grid,
    Sent,
    Told,
    error_response,
    free_port,
    hasty,
    running,
)
from starlette.applications import Starlette
from starlette.responses import (
    JSONResponse,
    PlainTextResponse,
)

from officegrid.coordinator.pki import Pki
from officegrid.core.errors import (
    OfficeGridError,
    UnavailableError,
)
from officegrid.transport.http import Connection

# --- retries


@pytest.mark.parametrize("status", [502, 503, 504])
def test_it_tries_again_until_it_works(grid: Grid, connection: Connection, status: int) -> None:
    grid.failures_left, grid.failure = 2, lambda: PlainTextResponse("later", status)
    assert connection.call("POST", "/v1/x", body=Sent(text="t"), reply=Told).received == 12
    assert len(grid.requests) == 3
    assert len(set(grid.bodies)) == 1


def test_downloads_lines_and_repeatable_uploads_are_retried(
    grid: Grid, connection: Connection
) -> None:
    def fail_once() -> None:
        grid.failures_left = 1
        grid.requests.clear()

    fail_once()
    assert connection.upload("/v1/o", [b"ab", b"c"], reply=Told).received == 3
    assert len(grid.requests) == 2
    fail_once()
    assert connection.upload("/v1/o", b"abc", reply=Told).received == 3
    assert len(grid.requests) == 2
    fail_once()
    assert b"/v1/o" in connection.download("/v1/o")
    assert len(grid.requests) == 2
    fail_once()
    assert len(list(connection.stream_lines("/v1/o"))) == 1
    assert len(grid.requests) == 2


def test_an_iterator_is_never_sent_twice(grid: Grid, connection: Connection) -> None:
    grid.failures_left = 1
    with pytest.raises(UnavailableError):
        connection.upload("/v1/o", iter([b"abc"]), reply=Told)
    assert len(grid.requests) == 1


def test_without_retry_one_failure_is_enough(grid: Grid, connection: Connection) -> None:
    grid.failures_left = 1
    with pytest.raises(UnavailableError, match="502"):
        connection.call("POST", "/v1/join2", retry=False)
    assert len(grid.requests) == 1


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(grid: Grid, connection: Connection, as_date: bool) -> None:
    stated = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    busy = UnavailableError("Busy.", "Starting.", "Wait.")
    grid.failures_left = 1
    grid.failure = lambda: error_response(busy, {"Retry-After": stated})
    started = time.monotonic()
    connection.call("GET", "/v1/x", reply=Told)
    # A date has whole seconds, so up to one of the two may be lost to rounding.
    assert time.monotonic() - started >= 0.95


def test_a_wait_beyond_the_budget_is_not_begun(grid: Grid, connection: Connection) -> None:
    busy = UnavailableError("Busy.", "Starting.", "Wait.")
    grid.failures_left = 9
    grid.failure = lambda: error_response(busy, {"Retry-After": "3600"})
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="Busy"):
        connection.call("GET", "/v1/x", reply=Told)
    assert time.monotonic() - started < 3
    assert len(grid.requests) == 1


def test_retries_end_when_their_time_is_over(grid: Grid) -> None:
    grid.failures_left = 10**6
    with hasty(grid.url, grid.pki.ca_pem, retry_s=1.0) as connection:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="502"):
            connection.call("GET", "/v1/x", reply=Told)
        assert time.monotonic() - started < 3
    assert len(grid.requests) > 1


def test_closing_ends_a_waiting_retry(grid: Grid) -> None:
    busy = UnavailableError("Busy.", "Starting.", "Wait.")
    grid.failures_left = 10**6
    grid.failure = lambda: error_response(busy, {"Retry-After": "600"})
    connection = hasty(grid.url, grid.pki.ca_pem, retry_s=3600)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            connection.call("GET", "/v1/x")
        except OfficeGridError as error:
            caught.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not grid.requests and time.monotonic() < deadline:
        time.sleep(0.005)
    connection.close()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert [type(error) for error in caught] == [UnavailableError]
    with pytest.raises(UnavailableError, match="closed"):
        connection.call("GET", "/v1/x")


def test_a_coordinator_that_comes_back_is_found(pki: Pki) -> None:
    grid = Grid(pki)
    grid.answer = lambda _: JSONResponse({}, headers=HEADERS)
    with free_port() as port:
        pass
    failed: list[BaseException] = []

    def call() -> None:
        try:
            with hasty(f"https://127.0.0.1:{port}", pki.ca_pem, retry_s=20) as connection:
                connection.call("GET", "/v1/x")
        except OfficeGridError as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    with running(Starlette(routes=grid.routes()), pki, port=port):
        thread.join(timeout=30)
    assert failed == []
    assert len(grid.requests) == 1
