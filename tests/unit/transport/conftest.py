"""A grid's identity and a well-behaved server, shared by the tests of this folder."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from loopback_servers import Grid, running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from officegrid.coordinator.pki import Pki, ensure_pki
from officegrid.coordinator.tokens import new_join_code, new_token
from officegrid.transport.http import Connection


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return ensure_pki(tmp_path_factory.mktemp("pki"), ["grid.example.org"], time.time())


@pytest.fixture(scope="session")
def other_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return ensure_pki(tmp_path_factory.mktemp("other-pki"), [], time.time())


@pytest.fixture(scope="session")
def _server(pki: Pki) -> Iterator[tuple[int, list[Grid]]]:
    """One server for all tests, as starting one takes longer than most of them; it hands each
    request to the grid of the test that runs now."""
    current: list[Grid] = []

    async def ca(request: Request) -> Response:
        return await current[-1].ca(request)

    async def join(request: Request) -> Response:
        return await current[-1].join(request)

    async def anything(request: Request) -> Response:
        return await current[-1].anything(request)

    routes = [
        Route("/v1/ca", ca),
        Route("/v1/join", join, methods=["POST"]),
        Route("/v1/{rest:path}", anything, methods=["GET", "POST", "PUT"]),
    ]
    with running(Starlette(routes=routes), pki) as port:
        yield port, current


@pytest.fixture
def grid(pki: Pki, _server: tuple[int, list[Grid]]) -> Iterator[Grid]:
    port, current = _server
    code = new_join_code(pki.fingerprint)
    known = Grid(pki, f"https://127.0.0.1:{port}", code.text, code.hash)
    current.append(known)
    yield known
    known.release.set()  # lets answers that still wait come to their end


@pytest.fixture
def token(grid: Grid) -> str:
    made = new_token()
    grid.token_hashes.add(made.hash)
    return made.text


@pytest.fixture
def connection(grid: Grid, token: str) -> Iterator[Connection]:
    with Connection(grid.url, grid.pki.ca_pem, token, timeout_s=5, retry_s=5) as opened:
        yield opened
