"""The agent's named pipe, on Windows: who may, who calls, and callers that behave badly."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from officegrid.agent.channel import pipe
from officegrid.agent.channel.hub import MOST_REQUEST_BYTES, Hub, Peer
from officegrid.agent.windows import accounts, api, pipe_calls, readings
from officegrid.agent.windows.api import Event
from officegrid.core.errors import ConflictError, ForbiddenError, UnavailableError

_numbers = itertools.count()


class Desk:
    """A hub that remembers who asked."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.name = f"officegrid-test-{os.getpid()}-{next(_numbers)}"
        self.hub = Hub(
            clock=time.monotonic, status=lambda: {"vm": "off"},
            pause=lambda until_s, peer: self.peers.append(peer), unpause=self.peers.append,
        )  # fmt: skip


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def server(desk: Desk) -> Iterator[pipe.Server]:
    server = pipe.serve(desk.hub, desk.name, request_timeout_s=0.5)
    yield server
    server.close()


def opened(desk: Desk) -> pipe_calls.PipeEnd:
    return pipe_calls.open_client(desk.name, time.monotonic() + 2)


def answer(end: pipe_calls.PipeEnd) -> Any:
    return json.loads(end.read(time.monotonic() + 3))


def test_windows_says_who_asks(desk: Desk, server: pipe.Server) -> None:
    assert pipe.request({"do": "unpause"}, name=desk.name) == {"ok": True}
    (peer,) = desk.peers
    assert peer == Peer(
        user=accounts.own_sid(), session=str(readings.own_session_id()), admin=True,
        pid=os.getpid(),
    )  # fmt: skip
    assert peer.user.startswith("S-1-5-")


def test_another_process_is_told_apart(desk: Desk, server: pipe.Server) -> None:
    code = (
        "import sys; from officegrid.agent.channel import pipe; "
        "print(pipe.request({'do': 'unpause'}, name=sys.argv[1]))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, desk.name], capture_output=True, text=True, timeout=30
    )
    assert child.stdout.strip() == "{'ok': True}", child.stderr
    assert desk.peers[0].pid not in (0, os.getpid())
    assert desk.peers[0].session == str(readings.own_session_id())


def test_many_requests_on_one_connection(desk: Desk, server: pipe.Server) -> None:
    connection = pipe.Connection(desk.name)
    for idle_s in range(50):
        reading = {"do": "session", "session": {"idle_s": idle_s}}
        assert connection.request(reading, 2)["ok"] is True
    connection.close()
    (session,) = desk.hub.sessions()
    assert session.idle_s == 49
    assert session.id == str(readings.own_session_id())


def test_requests_sent_in_one_go_are_all_answered(desk: Desk, server: pipe.Server) -> None:
    with opened(desk) as end:
        end.write(b'{"do": "status"}\n{"do": "unpause"}\n', time.monotonic() + 1)
        received = b""
        while received.count(b"\n") < 2:
            received += end.read(time.monotonic() + 2)
    first, second = map(json.loads, received.splitlines())
    assert first == {"ok": True, "status": {"vm": "off"}}
    assert second == {"ok": True}


@pytest.mark.parametrize("sent", [b"nonsense\n", b"[1]\n", b'{"do": 3}\n', b"\xff\xfe\n"])
def test_nonsense_is_refused_and_the_talk_goes_on(
    desk: Desk, server: pipe.Server, sent: bytes
) -> None:
    with opened(desk) as end:
        end.write(sent, time.monotonic() + 1)
        assert answer(end)["ok"] is False
        end.write(b'{"do": "status"}\n', time.monotonic() + 1)
        assert answer(end)["ok"] is True


def test_a_request_without_end_is_cut_off(desk: Desk, server: pipe.Server) -> None:
    with opened(desk) as end:
        end.write(b"x" * (MOST_REQUEST_BYTES + 1), time.monotonic() + 1)
        assert "too long" in answer(end)["error"]["what"]
        assert end.read(time.monotonic() + 2) == b""


def test_a_slow_caller_loses_the_connection_and_nobody_else(
    desk: Desk, server: pipe.Server
) -> None:
    with opened(desk) as slow:
        slow.write(b'{"do": ', time.monotonic() + 1)
        assert pipe.request({"do": "status"}, name=desk.name)["ok"] is True
        began_s = time.monotonic()
        assert slow.read(time.monotonic() + 5) == b""
        assert 0.2 < time.monotonic() - began_s < 3


def test_callers_at_the_same_time_are_all_served(desk: Desk, server: pipe.Server) -> None:
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        answers.append(pipe.request({"do": "unpause"}, timeout_s=10, name=desk.name))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{"ok": True}] * 6


def test_a_restarted_agent_is_found_again(desk: Desk) -> None:
    connection = pipe.Connection(desk.name)
    first = pipe.serve(desk.hub, desk.name)
    assert connection.request({"do": "unpause"}, 2)["ok"] is True
    first.close()
    with pytest.raises(UnavailableError, match="No agent answers"):
        connection.request({"do": "unpause"}, 1)
    second = pipe.serve(desk.hub, desk.name)
    assert connection.request({"do": "unpause"}, 2)["ok"] is True
    connection.close()
    second.close()


def test_closing_ends_every_thread_and_handle(desk: Desk) -> None:
    server = pipe.serve(desk.hub, desk.name)
    waiting = opened(desk)
    pipe.request({"do": "status"}, name=desk.name)
    server.close()
    server.close()
    waiting.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("agent-")]
    assert not pipe_calls.exists(desk.name)


def test_two_agents_are_one_too_many(desk: Desk, server: pipe.Server) -> None:
    with pytest.raises(ConflictError, match="Another program"):
        pipe.serve(desk.hub, desk.name)
    assert pipe.request({"do": "status"}, name=desk.name)["ok"] is True


def test_a_pipe_of_somebody_else_is_not_believed(desk: Desk) -> None:
    stop = Event()
    stranger = "O:S-1-5-21-0-0-0-513D:(A;;GA;;;WD)"  # another owner than us or the system
    end = pipe_calls.create_instance(desk.name, stranger, first=True, stop=stop)
    try:
        with pytest.raises(ForbiddenError, match="is not the agent"):
            pipe.request({"do": "status"}, 1, name=desk.name)
    finally:
        end.close()
        stop.close()


def test_no_answer_in_time(desk: Desk) -> None:
    stop = Event()
    sddl = pipe.descriptor(accounts.own_sid())
    end = pipe_calls.create_instance(desk.name, sddl, first=True, stop=stop)
    try:
        began_s = time.monotonic()
        with pytest.raises(UnavailableError, match="does not answer"):
            pipe.request({"do": "status"}, 0.3, name=desk.name)
        assert time.monotonic() - began_s < 3
    finally:
        end.close()
        stop.close()


def test_the_pipe_carries_our_security_descriptor(desk: Desk, server: pipe.Server) -> None:
    own = accounts.own_sid()
    with opened(desk) as end:
        assert accounts.owner_sid(end) == own
        entries = _access_entries(end)
    assert ("D", "S-1-5-2") in {(kind, sid) for kind, _, sid in entries}
    talk = {mask for kind, mask, sid in entries if (kind, sid) == ("A", "S-1-5-4")}
    assert talk == {pipe_calls.CLIENT_ACCESS}
    assert not pipe_calls.CLIENT_ACCESS & 0x4  # FILE_CREATE_PIPE_INSTANCE
    allowed = {sid for kind, _, sid in entries if kind == "A"}
    assert allowed == {"S-1-5-4", "S-1-5-18", "S-1-5-32-544", own}


def _access_entries(end: pipe_calls.PipeEnd) -> list[tuple[str, int, str]]:
    """(A or D, access mask, SID) of the pipe's access list, as Windows keeps it."""
    acl, descriptor = ctypes.c_void_p(), ctypes.c_void_p()
    advapi32 = ctypes.WinDLL("advapi32")
    get = advapi32.GetSecurityInfo
    get.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint] + [ctypes.c_void_p] * 5
    code = get(end.value, 6, 4, None, None, ctypes.byref(acl), None, ctypes.byref(descriptor))
    assert code == 0
    count = ctypes.c_uint16.from_address(acl.value + 4).value
    entries, at = [], acl.value + 8
    for _ in range(count):
        kind, _flags = ctypes.c_uint8.from_address(at).value, 0
        size = ctypes.c_uint16.from_address(at + 2).value
        mask = ctypes.c_uint32.from_address(at + 4).value
        entries.append(("AD"[kind], mask, accounts.sid_text(at + 8)))
        at += size
    api.local_free(descriptor)
    return entries
