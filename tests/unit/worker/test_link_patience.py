"""How a worker's line asks again: at once after a dead connection, with pauses after that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from officegrid.core.errors import UnavailableError
from officegrid.transport.http import Connection
from officegrid.worker.link import GaveUp, Link


@pytest.fixture
def connection(pki_pem: str) -> Iterator[Connection]:
    with Connection("https://127.0.0.1:1", pki_pem, "t" * 40) as made:
        yield made


@pytest.fixture(scope="module")
def pki_pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    from officegrid.coordinator.pki import ensure_pki

    return ensure_pki(tmp_path_factory.mktemp("pki"), [], 1_800_000_000.0).ca_pem


@pytest.fixture
def never_waits(connection: Connection) -> Link:
    """A link of a worker that stops: whoever would have to wait gives up instead."""
    stopping = threading.Event()
    stopping.set()
    return Link(connection, "session", stopping)


def failing(times: int) -> tuple[Callable[[], str], list[int]]:
    """A request that fails so often before it succeeds, and the list of its calls."""
    calls: list[int] = []

    def request() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise UnavailableError("The connection broke off.")
        return "answer"

    return request, calls


def test_one_dead_connection_costs_no_pause(never_waits: Link) -> None:
    request, calls = failing(1)
    assert never_waits.patiently(request) == "answer"
    assert len(calls) == 2


def test_the_second_failure_is_waited_out(never_waits: Link) -> None:
    request, calls = failing(2)
    with pytest.raises(GaveUp):
        never_waits.patiently(request)
    assert len(calls) == 2


def test_a_coordinator_known_to_be_away_is_not_asked_twice_at_once(never_waits: Link) -> None:
    with pytest.raises(GaveUp):
        never_waits.patiently(failing(2)[0])
    request, calls = failing(1)
    with pytest.raises(GaveUp):
        never_waits.patiently(request)
    assert len(calls) == 1


def test_after_it_came_back_the_next_dead_connection_costs_no_pause(never_waits: Link) -> None:
    with pytest.raises(GaveUp):
        never_waits.patiently(failing(2)[0])
    never_waits.patiently(failing(0)[0])
    assert never_waits.patiently(failing(1)[0]) == "answer"
