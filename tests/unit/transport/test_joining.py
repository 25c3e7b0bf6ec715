"""Joining: addresses, codes, and servers that are not what they seem."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator

import pytest
from loopback_servers import Grid, free_port, raw_server, running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from officegrid.coordinator.pki import Pki
from officegrid.coordinator.tokens import hash_token, new_join_code
from officegrid.core.errors import AuthError, OfficeGridError, UnavailableError, UsageError
from officegrid.transport.address import is_loopback, normalise_url
from officegrid.transport.http import Connection
from officegrid.transport.join import join


def test_join_gives_an_identity_that_works(grid: Grid) -> None:
    bare = grid.url.removeprefix("https://")
    profile = join(bare, f" {grid.code.upper()}\n", name=" desk 7 ", facts={"cpus": 4})
    assert profile.url == grid.url
    assert (profile.machine_id, profile.role, profile.name) == ("m1", "worker", "desk 7")
    assert profile.ca_pem == grid.pki.ca_pem
    assert hash_token(profile.token) in grid.token_hashes
    assert profile.token not in repr(profile)
    with Connection(profile.url, profile.ca_pem, profile.token) as connection:
        connection.call("GET", "/v1/x")


def test_nothing_secret_goes_out_before_the_ca_is_proven(grid: Grid) -> None:
    join(grid.url, grid.code, name="x", facts={})
    assert [path for _, path, _ in grid.requests] == ["/v1/ca", "/v1/join"]
    assert "authorization" not in grid.requests[0][2]


def test_a_code_of_another_grid_is_refused_and_not_sent(grid: Grid, other_pki: Pki) -> None:
    code = new_join_code(other_pki.fingerprint).text
    with pytest.raises(AuthError, match="not the one this join code was made for") as caught:
        join(grid.url, code, name="x", facts={})
    assert caught.value.why
    assert caught.value.fix
    assert [path for _, path, _ in grid.requests] == ["/v1/ca"]


def test_an_unknown_code_is_told_by_the_coordinator(grid: Grid) -> None:
    code = new_join_code(grid.pki.fingerprint).text
    with pytest.raises(AuthError, match="The code is unknown"):
        join(grid.url, code, name="x", facts={})
    assert len(grid.requests) == 2


def test_a_mistyped_code_does_not_reach_the_network(grid: Grid) -> None:
    with pytest.raises(UsageError, match="typo"):
        join(grid.url, grid.code[:-1] + ("a" if grid.code[-1] != "a" else "b"), name="x", facts={})
    assert grid.requests == []


@pytest.mark.parametrize("name", ["", "  ", "n" * 256])
def test_impossible_names_are_told(grid: Grid, name: str) -> None:
    with pytest.raises(UsageError, match="under this name") as caught:
        join(grid.url, grid.code, name=name, facts={})
    assert caught.value.__suppress_context__


def test_an_impostor_with_the_right_ca_but_another_key_learns_nothing(
    pki: Pki, other_pki: Pki
) -> None:
    """It can show the true CA certificate, which is public, but cannot prove to be its server."""
    impostor = Grid(pki)
    code = new_join_code(pki.fingerprint)
    impostor.code_hash = code.hash
    with (
        running(Starlette(routes=impostor.routes()), other_pki) as port,
        pytest.raises(AuthError, match="not the one this machine joined"),
    ):
        join(f"127.0.0.1:{port}", code.text, name="x", facts={})
    assert [path for _, path, _ in impostor.requests] == ["/v1/ca"]


def test_further_certificates_of_an_unproven_server_are_not_kept(pki: Pki, other_pki: Pki) -> None:
    grid = Grid(pki)
    code = new_join_code(pki.fingerprint)
    grid.code_hash = code.hash

    async def chain(request: Request) -> Response:
        return PlainTextResponse(other_pki.ca_pem + "noise\n" + pki.ca_pem)

    routes = [Route("/v1/ca", chain), *grid.routes()]
    with running(Starlette(routes=routes), pki) as port:
        profile = join(f"127.0.0.1:{port}", code.text, name="x", facts={})
    assert profile.ca_pem == pki.ca_pem
    der = ssl.PEM_cert_to_DER_cert(profile.ca_pem)
    assert hashlib.sha256(der).digest() == pki.fingerprint


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 10_000


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda: PlainTextResponse(""), "not an Office Grid"),
        (lambda: PlainTextResponse("<html>router login</html>"), "not an Office Grid"),
        (lambda: JSONResponse({"error": "?"}, 404), "HTTP status 404"),
        (lambda: PlainTextResponse("bad gateway", 502), "HTTP status 502"),
        (lambda: PlainTextResponse(os.urandom(5000)), "not an Office Grid"),
        (lambda: StreamingResponse(endless()), "not an Office Grid"),
        (
            lambda: PlainTextResponse(
                "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"
            ),
            "not an Office Grid",
        ),
    ],
    ids=["empty", "html", "404", "502", "noise", "endless", "broken pem"],
)
def test_servers_that_are_no_coordinators(
    pki: Pki, answer: Callable[[], Response], told: str
) -> None:
    async def ca(request: Request) -> Response:
        return answer()

    with (
        running(Starlette(routes=[Route("/v1/ca", ca)]), pki) as port,
        pytest.raises(OfficeGridError, match=told) as caught,
    ):
        join(f"127.0.0.1:{port}", new_join_code(pki.fingerprint).text, name="x", facts={})
    assert caught.value.why
    assert caught.value.fix


def test_nobody_there(pki: Pki) -> None:
    with free_port() as port, pytest.raises(UnavailableError, match="cannot be reached"):
        join(f"127.0.0.1:{port}", new_join_code(pki.fingerprint).text, name="x", facts={})


def test_a_server_that_drips_its_certificate_is_given_up(pki: Pki) -> None:
    def handle(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        peer.settimeout(0.02)
        while True:
            try:
                if not peer.recv(1):
                    return
            except TimeoutError:
                peer.sendall(b"x")

    code = new_join_code(pki.fingerprint).text
    with raw_server(handle, pki) as port, pytest.raises(UnavailableError, match="in time"):
        join(f"127.0.0.1:{port}", code, name="x", facts={}, timeout_s=0.5)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("grid", "https://grid:8443"),
        ("grid:9000", "https://grid:9000"),
        (" https://Grid.Example.org/ ", "https://grid.example.org:8443"),
        ("HTTPS://grid:443", "https://grid:443"),
        ("10.0.0.7", "https://10.0.0.7:8443"),
        ("::1", "https://[::1]:8443"),
        ("[::1]:9000", "https://[::1]:9000"),
        ("https://[2001:db8::7]", "https://[2001:db8::7]:8443"),
    ],
)
def test_addresses_are_completed(typed: str, expected: str) -> None:
    assert normalise_url(typed) == expected
    assert normalise_url(expected) == expected


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "https://",
        "http://grid",
        "HTTP://grid:8443",
        "ftp://grid",
        "grid:port",
        "grid:0",
        "grid:70000",
        "grid/path",
        "grid?x=1",
        "user:pw@grid",
        "gr id",
        "https://gr%69d",
        "::1:zz",
        "[::1",
    ],
)
def test_other_things_are_not_addresses(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        normalise_url(typed)
    assert caught.value.why
    assert caught.value.fix
    assert "pw@" not in str(caught.value)


def test_plain_http_is_refused_with_its_reason() -> None:
    with pytest.raises(UsageError, match="plain http") as caught:
        normalise_url("http://grid:8443")
    assert "readable" in caught.value.why


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("https://localhost:1", True),
        ("https://127.3.2.1:1", True),
        ("https://[::1]:1", True),
        ("https://10.0.0.1:1", False),
        ("https://localhost.example.org:1", False),
    ],
)
def test_loopback(url: str, local: bool) -> None:
    assert is_loopback(url) is local
