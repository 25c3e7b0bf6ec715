"""Connection when nobody is there, or somebody else: names, certificates, proxies, secrets."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_servers import (
    HEADERS,
    TOKEN,
    Grid,
    Told,
    assert_understandable,
    connect_proxy,
    failure_of,
    free_port,
    hasty,
    raw_server,
    running,
)
from starlette.applications import Starlette
from starlette.responses import (
    JSONResponse,
)

from officegrid.coordinator.pki import Pki, ensure_pki
from officegrid.core.errors import (
    AuthError,
    UnavailableError,
    UsageError,
)
from officegrid.transport.http import Connection
from officegrid.wire.versions import PROTOCOL, PROTOCOL_HEADER

# --- nobody there, or somebody else


def test_nobody_listens(pki: Pki) -> None:
    with free_port() as port:
        url = f"https://127.0.0.1:{port}"
        error = failure_of(url, pki.ca_pem, UnavailableError, "cannot be reached")
    assert str(port) in error.what


def test_a_name_that_does_not_exist(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    url = "https://no-such-host.invalid:8443"
    failure_of(url, pki.ca_pem, UnavailableError, "cannot be found")


def test_another_ca_is_refused_before_anything_is_sent(grid: Grid, other_pki: Pki) -> None:
    failure_of(grid.url, other_pki.ca_pem, AuthError, "not the one this machine joined")
    assert grid.requests == []


def test_an_address_outside_the_certificate_is_refused(pki: Pki) -> None:
    grid = Grid(pki)
    with running(Starlette(routes=grid.routes()), pki, "127.0.0.2") as port:
        url = f"https://127.0.0.2:{port}"
        failure_of(url, pki.ca_pem, AuthError, "does not cover the address")
    assert grid.requests == []


def test_an_expired_certificate_names_the_clock(tmp_path: Path) -> None:
    old = ensure_pki(tmp_path / "pki", [], time.time() - 500 * 86_400)
    grid = Grid(old)
    with running(Starlette(routes=grid.routes()), old) as port:
        url = f"https://127.0.0.1:{port}"
        error = failure_of(url, old.ca_pem, UnavailableError, "not valid at this time")
    assert "clock" in error.why
    assert grid.requests == []


def close_at_once(peer: socket.socket) -> None:
    peer.recv(65536)


def talk_garbage(peer: socket.socket) -> None:
    peer.recv(65536)
    peer.sendall(b"220 smtp.example.org ESMTP\r\n" * 50)


def say_nothing(peer: socket.socket) -> None:
    while peer.recv(65536):
        pass


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("handle", [close_at_once, talk_garbage, say_nothing])
def test_strange_servers_give_understandable_errors(
    pki: Pki, handle: Callable[[socket.socket], None], tls: bool
) -> None:
    with raw_server(handle, pki if tls else None) as port:
        url = f"https://127.0.0.1:{port}"
        failure_of(url, pki.ca_pem, UnavailableError, "coordinator", timeout_s=0.5)


def test_a_plain_http_port_is_told_apart(pki: Pki) -> None:
    def handle(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with raw_server(handle) as port:
        url = f"https://127.0.0.1:{port}"
        error = failure_of(url, pki.ca_pem, UnavailableError, "not an Office Grid")
    assert "TLS" in error.why


def test_a_download_cut_short_is_never_returned(pki: Pki) -> None:
    head = f"HTTP/1.1 200 OK\r\n{PROTOCOL_HEADER}: {PROTOCOL}\r\nContent-Length: 1000\r\n\r\n"

    def handle(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(head.encode() + b"x" * 999)

    with (
        raw_server(handle, pki) as port,
        hasty(f"https://127.0.0.1:{port}", pki.ca_pem) as connection,
        pytest.raises(UnavailableError, match="broke off"),
    ):
        connection.download("/v1/objects/x")


# --- proxies


def test_a_proxy_is_used_and_the_name_still_checked(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    grid.answer = lambda _: JSONResponse({}, headers=HEADERS)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with connect_proxy(int(grid.url.rpartition(":")[2]), seen) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        with hasty("https://grid.example.org:8443", grid.pki.ca_pem) as connection:
            connection.call("GET", "/v1/x")
        url = "https://other.example.org:8443"
        failure_of(url, grid.pki.ca_pem, AuthError, "does not cover the address")
    assert seen == [
        b"CONNECT grid.example.org:8443 HTTP/1.1",
        b"CONNECT other.example.org:8443 HTTP/1.1",
    ]
    assert len(grid.requests) == 1
    assert "authorization" in grid.requests[0][2]


def test_a_proxy_that_refuses_is_told(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with raw_server(handle) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        url = "https://grid.example.org:8443"
        failure_of(url, pki.ca_pem, UnavailableError, "proxy")


def test_this_very_machine_is_reached_without_proxy(
    grid: Grid, connection: Connection, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with free_port() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        with Connection(grid.url, grid.pki.ca_pem, token, retry_s=0) as local:
            local.call("GET", "/v1/x", reply=Told)


def test_a_senseless_proxy_setting_is_told(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "ftp://user:hunter2@proxy:1")
    with pytest.raises(UsageError, match="proxy settings") as caught:
        Connection("https://grid.example.org:8443", pki.ca_pem, TOKEN)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


# --- secrets


@pytest.mark.parametrize("bad", [f"{TOKEN}\n", f"{TOKEN}\r\nX: y", "", f"{TOKEN}ä", "a b"])
def test_a_token_that_no_header_can_carry_is_not_quoted(pki: Pki, bad: str) -> None:
    with pytest.raises(AuthError, match="token is damaged") as caught:
        Connection("https://127.0.0.1:1", pki.ca_pem, bad)
    assert_understandable(caught.value)


def test_a_damaged_ca_is_told() -> None:
    with pytest.raises(AuthError, match="damaged"):
        Connection("https://127.0.0.1:1", "not a certificate", TOKEN)


def test_a_connection_does_not_show_its_token(pki: Pki) -> None:
    with hasty("https://127.0.0.1:1", pki.ca_pem) as connection:
        assert repr(connection) == "Connection('https://127.0.0.1:1')"
