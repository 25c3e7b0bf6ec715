"""The agent's door with real sockets, real processes and real user ids."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from desktops import wait_until
from officegrid.agent.channel import unix
from officegrid.agent.channel.hub import MOST_REQUEST_BYTES, Hub, Peer
from officegrid.agent.channel.peer import logon_session
from officegrid.agent.channel.unix import Server, request, serve, socket_path
from officegrid.agent.channel.unix_client import Connection
from officegrid.core.errors import (
    ConflictError,
    ForbiddenError,
    OfficeGridError,
    UnavailableError,
    UsageError,
)
from parts import without

NOBODY = 65534
READING = {"idle_s": 3.5, "locked": False, "presenting": False}
CLIENT = """
import json, os, sys
from pathlib import Path
from officegrid.agent.channel.unix import request
from officegrid.core.errors import OfficeGridError
uid, path = int(sys.argv[1]), sys.argv[2]
if uid:  # not before, for that user need not be able to read the program
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
try:
    print(json.dumps(request(Path(path), json.loads(sys.argv[3]), 5.0)))
except OfficeGridError as error:
    print(json.dumps({"raised": type(error).__name__, "what": error.what}))
"""


class Desk:
    """A hub that remembers who paused."""

    def __init__(self) -> None:
        self.paused: list[tuple[float | None, Peer]] = []
        self.fast = False
        self.hub = Hub(
            clock=time.monotonic,
            status=lambda: {"vm": "running"},
            pause=lambda until_s, peer: self.paused.append((until_s, peer)),
            unpause=lambda peer: None,
            fast=lambda: self.fast,
        )


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def folder() -> Iterator[Path]:
    # Everybody must be able to reach it, which pytest's own folders do not allow.
    with tempfile.TemporaryDirectory(prefix="og-door-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def server(desk: Desk, folder: Path) -> Iterator[Server]:
    found = serve(desk.hub, socket_path(folder), request_timeout_s=0.5)
    yield found
    found.close()


def _as_user(uid: int, path: Path, message: dict[str, Any]) -> dict[str, Any]:
    if uid != os.geteuid() and os.geteuid() != 0:
        without("only root can become another user")
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(uid), str(path), json.dumps(message)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_helper_reports_and_is_told_when_to_hurry(
    desk: Desk, server: Server, folder: Path
) -> None:
    message = {"do": "session", "session": READING}
    assert request(socket_path(folder), message) == {"ok": True, "fast": False}
    desk.fast = True
    assert request(socket_path(folder), message) == {"ok": True, "fast": True}
    (session,) = desk.hub.sessions()
    assert session.idle_s == 3.5
    assert session.user == str(os.geteuid())
    assert request(socket_path(folder), {"do": "status"})["status"] == {"vm": "running"}


def test_the_kernel_says_who_calls_not_the_caller(desk: Desk, server: Server, folder: Path) -> None:
    path = socket_path(folder)
    lie = {**READING, "id": "user:0", "user": "root", "session": "1", "admin": True}
    assert _as_user(NOBODY, path, {"do": "session", "session": lie})["ok"] is True
    assert _as_user(0, path, {"do": "session", "session": READING})["ok"] is True
    ids = {session.id: session.user for session in desk.hub.sessions()}
    assert ids.pop(f"user:{NOBODY}") == str(NOBODY)
    assert set(ids.values()) == {"0"}
    _as_user(NOBODY, path, {"do": "pause", "until_s": 1e9})  # a helper has reported for it
    ((until_s, peer),) = desk.paused
    assert until_s == 1e9
    assert (peer.user, peer.admin) == (str(NOBODY), False)
    assert peer.pid > 1


def test_who_may_come_in_can_be_narrowed(desk: Desk, folder: Path) -> None:
    path = socket_path(folder)
    server = serve(desk.hub, path, mode=0o660, group=0)
    try:
        assert path.stat().st_mode & 0o777 == 0o660
        assert _as_user(NOBODY, path, {"do": "status"})["raised"] == "ForbiddenError"
    finally:
        server.close()
    server = serve(desk.hub, path, mode=0o660, group=NOBODY)
    try:
        assert _as_user(NOBODY, path, {"do": "status"})["ok"] is True
    finally:
        server.close()


def test_nobody_listens(folder: Path) -> None:
    with pytest.raises(UnavailableError, match="No agent answers on this PC"):
        request(socket_path(folder), {"do": "status"})
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(socket_path(folder)))
    with pytest.raises(UnavailableError, match="No agent answers on this PC"):
        request(socket_path(folder), {"do": "status"})


def test_an_agent_that_is_stuck_is_not_waited_for(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(socket_path(folder)))
        stuck.listen()
        with pytest.raises(UnavailableError, match="does not answer"):
            request(socket_path(folder), {"do": "status"}, timeout_s=0.3)


def test_a_stranger_on_the_path_is_not_the_agent(folder: Path) -> None:
    if os.geteuid() != 0:
        without("only root can become another user")
    folder.chmod(0o777)
    squatter = subprocess.Popen(
        [sys.executable, "-c",
         "import os,socket,sys,time\n"
         f"os.setuid({NOBODY})\n"
         "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); time.sleep(60)",
         str(socket_path(folder))],
    )  # fmt: skip
    try:
        wait_until(socket_path(folder).exists)
        folder.chmod(0o755)
        wait_until(lambda: unix._somebody_answers(socket_path(folder)))
        with pytest.raises(ForbiddenError, match="is not the agent"):
            request(socket_path(folder), {"do": "status"})
    finally:
        squatter.kill()
        squatter.wait()


def test_a_folder_that_others_can_write_to_is_refused(desk: Desk, folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(ForbiddenError, match="Others can write"):
        serve(desk.hub, socket_path(folder))
    with pytest.raises(UsageError, match="shorter path"):
        serve(desk.hub, folder / ("x" * 100) / "agent.sock")


def test_two_agents_on_one_pc_and_one_that_was_killed(
    desk: Desk, server: Server, folder: Path
) -> None:
    path = socket_path(folder)
    with pytest.raises(ConflictError, match="Another agent listens"):
        serve(desk.hub, path)
    assert request(path, {"do": "status"})["ok"] is True
    server.close()
    assert not path.exists()
    killed = subprocess.Popen(
        [sys.executable, "-c",
         "import sys,time; from pathlib import Path\n"
         "from officegrid.agent.channel.hub import Hub\n"
         "from officegrid.agent.channel.unix import serve\n"
         "hub = Hub(clock=time.monotonic, status=dict, pause=print, unpause=print)\n"
         "serve(hub, Path(sys.argv[1])); time.sleep(60)", str(path)],
    )  # fmt: skip
    wait_until(path.exists, 30)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert path.exists()
    again = serve(desk.hub, path)
    try:
        assert request(path, {"do": "status"})["ok"] is True
    finally:
        again.close()


def test_closing_leaves_a_successors_socket_alone(desk: Desk, server: Server, folder: Path) -> None:
    socket_path(folder).unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(socket_path(folder)))
        server.close()
        assert socket_path(folder).exists()


def _open(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(socket_path(folder)))
    return connection


def test_slow_and_silent_callers_hold_up_nobody(server: Server, folder: Path) -> None:
    slow = [_open(folder) for _ in range(10)]
    try:
        for connection in slow[:5]:
            connection.sendall(b'{"do": "sta')
        began_s = time.monotonic()
        assert request(socket_path(folder), {"do": "status"})["ok"] is True
        assert time.monotonic() - began_s < 0.4
        for connection in slow:  # and they are shown the door
            assert connection.recv(100) == b""
    finally:
        for connection in slow:
            connection.close()


def test_one_user_cannot_take_all_connections(
    monkeypatch: pytest.MonkeyPatch, server: Server, folder: Path
) -> None:
    monkeypatch.setattr(unix, "MOST_CONNECTIONS_PER_USER", 3)
    held = [_open(folder) for _ in range(3)]
    try:
        with pytest.raises(UnavailableError):
            request(socket_path(folder), {"do": "status"}, 1.0)
        answer = _as_user(NOBODY, socket_path(folder), {"do": "status"})
        assert answer["ok"] is True
    finally:
        for connection in held:
            connection.close()


def test_one_who_never_reads_answers_is_dropped(server: Server, folder: Path) -> None:
    with _open(folder) as greedy:
        greedy.setblocking(False)
        deadline_s = time.monotonic() + 20
        dropped = False
        while not dropped:
            assert time.monotonic() < deadline_s
            try:
                greedy.send(b'{"do": "status"}\n' * 100)
            except BlockingIOError:
                assert request(socket_path(folder), {"do": "status"})["ok"] is True
                time.sleep(0.05)
            except OSError:
                dropped = True


@pytest.mark.parametrize(
    "line",
    [
        b"x" * (MOST_REQUEST_BYTES + 10),
        b"{" * MOST_REQUEST_BYTES + b"\n",
        b"not json\n",
        b"[1, 2]\n",
        b'{"do": "session", "session": {"idle_s": -4}}\n',
        b'{"do": "session", "session": {"idle_s": NaN}}\n',
        b'{"do": "session", "session": {"idle_s": Infinity}}\n',
        b'{"do": "session", "session": {"idle_s": true}}\n',
        b'{"do": "session", "session": {"idle_s": 1, "presenting": "no"}}\n',
        b'{"do": "everything"}\n',
        b"\xff\xfe\n",
        b"\n",
    ],
)
def test_nonsense_is_refused_with_a_sentence(
    desk: Desk, server: Server, folder: Path, line: bytes
) -> None:
    with _open(folder) as connection:
        connection.sendall(line)
        answer = json.loads(connection.makefile("rb").readline())
    assert answer["ok"] is False
    assert answer["error"]["what"].endswith(".")
    assert desk.hub.sessions() == []


def test_many_requests_on_one_connection_arrive_in_pieces(server: Server, folder: Path) -> None:
    with _open(folder) as connection:
        both = b'{"do": "status"}\n{"do": "unpause"}\n{"do": "sta'
        for byte in both:
            connection.sendall(bytes([byte]))
        connection.sendall(b'tus"}\n')
        answers = connection.makefile("rb")
        assert [json.loads(answers.readline())["ok"] for _ in range(3)] == [True] * 3


def test_an_error_behind_the_door_is_an_answer(folder: Path) -> None:
    def refuse(until_s: float | None, peer: Peer) -> None:
        raise ForbiddenError("Only the user may pause.", "why", "fix") if until_s else KeyError("x")

    hub = Hub(clock=time.monotonic, status=dict, pause=refuse, unpause=lambda peer: None)
    server = serve(hub, socket_path(folder))
    try:
        told = request(socket_path(folder), {"do": "pause", "until_s": 5})
        assert told["error"] == {"what": "Only the user may pause.", "why": "why", "fix": "fix"}
        told = request(socket_path(folder), {"do": "pause", "until_s": None})
        assert told["error"]["what"] == "The agent failed to answer."
        assert request(socket_path(folder), {"do": "status"})["ok"] is True
    finally:
        server.close()


def test_a_kept_connection_survives_a_restart_of_the_agent(desk: Desk, folder: Path) -> None:
    connection = Connection(socket_path(folder))
    for _ in range(2):
        server = serve(desk.hub, socket_path(folder))
        assert connection.request({"do": "status"}, 5.0)["ok"] is True
        assert connection.request({"do": "status"}, 5.0)["ok"] is True
        server.close()
        if _:
            with pytest.raises(OfficeGridError, match="No agent answers"):
                connection.request({"do": "status"}, 5.0)
    connection.close()


def test_closing_ends_the_thread_and_all_connections(desk: Desk, folder: Path) -> None:
    before = threading.active_count()
    server = serve(desk.hub, socket_path(folder))
    with _open(folder) as connection:
        server.close()
        server.close()
        assert connection.recv(10) == b""
    assert threading.active_count() == before


def _process(proc: Path, cgroup: str, session: str = "4294967295", login: str = "1000") -> None:
    folder = proc / "77"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup").write_text(cgroup)
    (folder / "sessionid").write_text(session)
    (folder / "loginuid").write_text(login)


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "3"),
        ("0::/user.slice/user-1000.slice/session-c2.scope/x\n", "c2"),
        ("12:pids:/x\n1:name=systemd:/user.slice/user-1000.slice/session-9.scope\n", "9"),
        # `su` from another user's session: theirs, not mine to report.
        ("0::/user.slice/user-1001.slice/session-3.scope\n", ""),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n", ""),
        ("0::/user.slice/user-1000.slice/session-3.scopes\n", ""),
        ("", ""),
    ],
)
def test_the_session_of_a_process_by_its_control_group(
    tmp_path: Path, cgroup: str, expected: str
) -> None:
    _process(tmp_path, cgroup)
    assert logon_session(77, 1000, proc=tmp_path, sessions=tmp_path / "none") == expected
    assert logon_session(0, 1000, proc=tmp_path) == ""
    assert logon_session(78, 1000, proc=tmp_path) == ""


def test_the_session_of_a_process_by_its_audit_session(tmp_path: Path) -> None:
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    (sessions / "5").write_text("# private\nUID=1000\nCLASS=user\n")
    (sessions / "6").write_text("UID=1000\nCLASS=manager\n")

    def found(session: str, login: str = "1000") -> str:
        _process(tmp_path, "0::/user.slice/user-1000.slice/user@1000.service\n", session, login)
        return logon_session(77, 1000, proc=tmp_path, sessions=sessions)

    assert found("5") == "5"
    assert found("6") == ""  # the user manager's own
    assert found("7") == ""  # ended
    assert found("5", login="1001") == ""  # came from another user's logon
    (sessions / "5").write_text("UID=1001\nCLASS=user\n")
    assert found("5") == ""
