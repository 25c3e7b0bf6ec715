"""A worker joins by itself, against a real coordinator in this process that can go away."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from officegrid.coordinator.app import make_app, open_coordinator
from officegrid.coordinator.service import identity as identity_service
from officegrid.coordinator.service import machines
from officegrid.coordinator.state import Coordinator
from officegrid.coordinator.tokens import hash_token, new_join_code
from officegrid.core.errors import OfficeGridError, UnavailableError
from officegrid.storage.api import Machine
from officegrid.transport.client import tls_context
from officegrid.transport.join import join
from officegrid.transport.profile import load_profile, save_profile
from officegrid.worker import joining
from officegrid.worker.joining import Joining, Stopped

pytestmark = pytest.mark.timeout(60)
HERE, THERE = "a" * 32, "b" * 32


class _Crash(BaseException):
    """The power goes."""


class Server:
    """A coordinator; `lose_answers` lets it do what it is asked and not answer."""

    def __init__(self, here: Coordinator, port: int) -> None:
        self.here = here
        self.url = f"https://127.0.0.1:{port}"
        self.lose_answers = 0
        self.asked: list[str] = []

    def wrap(self, app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self.asked.append(scope["path"])
            lose = self.lose_answers > 0 and scope["method"] == "POST"

            async def answer(message: Message) -> None:
                if not lose:
                    await send(message)

            await app(scope, receive, answer)
            if lose:  # as a proxy answers whose upstream broke off
                self.lose_answers -= 1
                await send({"type": "http.response.start", "status": 502, "headers": []})
                await send({"type": "http.response.body", "body": b""})

        return wrapped

    def code(self) -> str:
        made = new_join_code(self.here.pki.fingerprint)
        now = time.time()
        self._write(lambda tx: machines.add_code(tx, made.hash, "worker", 1, 3600, now))
        return made.text

    def _write(self, operation: Callable[[Any], Any]) -> Any:
        return self.here.writer.submit(operation).result(timeout=10)

    def machines(self) -> list[Machine]:
        return self.here.storage.read(lambda tx: tx.machines())

    def machine_of(self, home: Path) -> Machine:
        token = hash_token(load_profile(home).token)
        found = self.here.storage.read(lambda tx: tx.machine_by_token(token))
        assert found is not None
        return found

    def revoke(self, machine: Machine) -> None:
        self._write(lambda tx: machines.revoke(self.here.grid, tx, machine, time.time()))
        self.here.forget_callers()


@contextlib.contextmanager
def serving(app: ASGIApp, here: Coordinator, port: int) -> Iterator[None]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(
        app, ssl_certfile=str(here.pki.server_cert_path),
        ssl_keyfile=str(here.pki.server_key_path), log_level="critical", lifespan="off",
        ws="none", timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Not serving yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = open_coordinator(tmp_path / "data", names=[])
    yield Server(here, port)
    here.writer.stop()
    here.storage.close()


@pytest.fixture
def serve(server: Server) -> Iterator[Callable[[], None]]:
    """Call it to let the coordinator come up."""
    with contextlib.ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        app = server.wrap(make_app(server.here))
        yield lambda: stack.enter_context(serving(app, server.here, port))


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(joining, "BACKOFF_BASE_S", 0.02)
    monkeypatch.setattr(joining, "BACKOFF_CAP_S", 0.1)
    monkeypatch.delenv("OFFICEGRID_HARDWARE_ID", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "join.json"


def write(path: Path, **told: Any) -> None:
    """Replace the seed file, as the guest's program does."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(told))
    os.replace(draft, path)


def tell_join(seed: Path, server: Server, code: str = "", **more: str) -> None:
    told = {"instance_id": "i-1", "name": "vm", "url": server.url, "hardware_id": HERE}
    write(seed, kind="join", code=code or server.code(), **{**told, **more})


def tell_clone(seed: Path, server: Server, hardware_id: str = THERE, instance: str = "i-1") -> None:
    write(seed, kind="clone", instance_id=instance, name="vm", url=server.url,
          hardware_id=hardware_id)  # fmt: skip


def take(home: Path, seed: Path) -> None:
    Joining(home, threading.Event()).from_seed(seed)


def identity(home: Path) -> dict[str, str]:
    kept: dict[str, str] = json.loads((home / "identity.json").read_text())
    return kept


class Waiting:
    """`from_seed`, or `as_copy` where no seed is named, in a thread of its own."""

    def __init__(self, home: Path, seed: Path | None) -> None:
        self.stopping = threading.Event()
        self.ended_with: BaseException | None = None
        self._joining = Joining(home, self.stopping)
        self._thread = threading.Thread(target=self._run, args=(seed,))
        self._thread.start()

    def _run(self, seed: Path | None) -> None:
        try:
            if seed is not None:
                self._joining.from_seed(seed)
            else:
                self._joining.as_copy(THERE)
        except (Stopped, OfficeGridError) as error:
            self.ended_with = error

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        self.stopping.set()
        self.join()


@contextlib.contextmanager
def waiting(home: Path, seed: Path | None = None) -> Iterator[Waiting]:
    made = Waiting(home, seed)
    try:
        yield made
    finally:
        made.stop()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# --- joining


def test_a_worker_joins_with_the_code_of_its_seed(
    server: Server, serve: Callable[[], None], home: Path, seed: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    serve()
    code = server.code()
    tell_join(seed, server, code)
    take(home, seed)
    assert not seed.exists()
    machine = server.machine_of(home)
    assert (machine.name, machine.role, machine.facts["hardware_id"]) == ("vm", "worker", HERE)
    assert machine.facts["cpus"] == os.cpu_count()
    assert identity(home) == {"instance_id": "i-1", "hardware_id": HERE}
    assert sorted(path.name for path in home.iterdir()) == ["identity.json", "profile.json"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in home.iterdir())
    said = capsys.readouterr().err
    assert "GRID-JOINED" in said
    assert code not in said
    assert load_profile(home).token not in said


def test_without_a_seed_nothing_happens(home: Path, seed: Path) -> None:
    take(home, seed)
    assert list(home.iterdir()) == []


def test_a_seed_that_was_carried_out_is_only_removed(
    server: Server, serve: Callable[[], None], home: Path, seed: Path
) -> None:
    serve()
    code = server.code()
    tell_join(seed, server, code)
    take(home, seed)
    asked = len(server.asked)
    tell_join(seed, server, code)  # it could not be removed, or was written again
    take(home, seed)
    assert not seed.exists()
    assert len(server.asked) == asked
    tell_join(seed, server, instance_id="i-2")
    take(home, seed)
    assert len(server.machines()) == 2, "a new instance is a new machine"


def test_a_coordinator_that_is_away_is_waited_for(
    server: Server, serve: Callable[[], None], home: Path, seed: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tell_join(seed, server)
    with waiting(home, seed) as worker:
        until(lambda: "not_joined_yet" in capsys.readouterr().err, "it says that it waits")
        assert worker.waits
        serve()
        worker.join()
    assert server.machine_of(home).name == "vm"
    assert "not_joined_yet" not in capsys.readouterr().err, "said once"


def test_a_stop_ends_the_wait_at_once(server: Server, home: Path, seed: Path) -> None:
    tell_join(seed, server)
    with waiting(home, seed) as worker:
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < 5
        assert isinstance(worker.ended_with, Stopped)
    assert seed.exists()


def test_a_code_that_was_used_is_refused_until_another_seed_comes(
    server: Server, serve: Callable[[], None], home: Path, seed: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    serve()
    code = server.code()
    tell_join(seed, server, code)
    first = tmp_path / "first"
    take(first, seed)
    tell_join(seed, server, code, name="second")
    with waiting(home, seed) as worker:
        until(lambda: "joining.refused" in capsys.readouterr().err, "it says why it waits")
        asked = len(server.asked)
        seed.unlink()  # taken away in between
        time.sleep(0.2)
        assert len(server.asked) == asked, "the same code is not tried again and again"
        assert worker.waits
        tell_join(seed, server, name="second")
        worker.join()
    assert server.machine_of(home).name == "second"
    assert len(server.machines()) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "not json", '{"kind": "join", "instance_id": "i", "name": "n", "url": "u"}',
     '{"kind": "other", "instance_id": "i", "name": "n", "url": "u", "code": "c"}'],
)  # fmt: skip
def test_a_damaged_seed_is_waited_out(
    server: Server, serve: Callable[[], None], home: Path, seed: Path, text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    serve()
    seed.write_text(text)
    with waiting(home, seed) as worker:
        until(lambda: "joining.refused" in capsys.readouterr().err, "it says why it waits")
        tell_join(seed, server)
        worker.join()
    assert server.machine_of(home).name == "vm"


def test_a_home_that_cannot_be_written_does_not_use_the_code_up(
    server: Server, serve: Callable[[], None], home: Path, seed: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    serve()
    tell_join(seed, server)
    right = joining._write_private

    def full(path: Path, value: object) -> None:
        raise UnavailableError("This worker's identity cannot be kept.", "No space left.")

    monkeypatch.setattr(joining, "_write_private", full)
    with waiting(home, seed) as worker:
        until(lambda: "cannot be kept" in capsys.readouterr().err, "it says why it waits")
        monkeypatch.setattr(joining, "_write_private", right)
        worker.join()
    assert server.machine_of(home).name == "vm"


# --- crashes


@pytest.mark.parametrize("moment", ["journal", "profile", "identity", "seed"])
@pytest.mark.parametrize("kind", ["join", "clone"])
def test_a_crash_at_any_moment_heals(
    server: Server, serve: Callable[[], None], home: Path, seed: Path,
    monkeypatch: pytest.MonkeyPatch, moment: str, kind: str,
) -> None:  # fmt: skip
    """The power goes right after the journal, profile.json or identity.json were written, or
    before the seed is removed: the next start finds the identity whole, and uses no other code."""
    serve()
    tell_join(seed, server)
    if kind == "clone":
        take(home, seed)
        tell_clone(seed, server)
    write_private, save_profile, drop = (
        joining._write_private, joining.save_profile, joining._drop
    )  # fmt: skip
    names = {"journal": "joined.json", "identity": "identity.json"}

    def written(path: Path, value: Any) -> None:
        write_private(path, value)
        if path.name == names.get(moment) and value:
            raise _Crash

    def saved(*arguments: Any) -> Path:
        path = save_profile(*arguments)
        if moment == "profile":
            raise _Crash
        return path

    def dropped(path: Path) -> None:
        if moment == "seed" and path == seed:
            raise _Crash
        drop(path)

    with monkeypatch.context() as patch:
        patch.setattr(joining, "_write_private", written)
        patch.setattr(joining, "save_profile", saved)
        patch.setattr(joining, "_drop", dropped)
        with pytest.raises(_Crash):
            take(home, seed)
    asked = len(server.asked)
    take(home, seed)
    assert len(server.asked) == asked, "the identity was there already"
    assert not seed.exists()
    assert not (home / "joined.json").exists()
    made = server.machines()
    assert len(made) == (2 if kind == "clone" else 1)
    now = server.machine_of(home)
    assert (now.cloned_from is not None) == (kind == "clone")
    assert identity(home)["hardware_id"] == (THERE if kind == "clone" else HERE)


def test_a_journal_without_its_seed_is_finished_too(
    server: Server, serve: Callable[[], None], home: Path, seed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    serve()
    tell_join(seed, server)

    def crash(*_: Any) -> Path:
        raise _Crash

    with monkeypatch.context() as patch:
        patch.setattr(joining, "save_profile", crash)
        with pytest.raises(_Crash):
            take(home, seed)
    seed.unlink()  # /run is empty after a boot
    take(home, seed)
    assert server.machine_of(home).name == "vm"


# --- copies


@pytest.fixture
def joined(server: Server, serve: Callable[[], None], home: Path, seed: Path) -> Machine:
    """The machine whose home is copied: `home` is the copy."""
    serve()
    tell_join(seed, server)
    take(home, seed)
    return server.machine_of(home)


def test_a_copy_gets_an_identity_of_its_own(
    server: Server, home: Path, seed: Path, joined: Machine
) -> None:
    tell_clone(seed, server)
    take(home, seed)
    now = server.machine_of(home)
    assert now.id != joined.id
    assert (now.name, now.cloned_from) == ("vm-bbbbbb", joined.id)
    profile = load_profile(home)
    assert (profile.machine_id, profile.name) == (now.id, now.name)
    assert identity(home) == {"instance_id": "i-1", "hardware_id": THERE}


def test_a_lost_answer_makes_no_second_machine(
    server: Server, home: Path, seed: Path, joined: Machine
) -> None:
    server.lose_answers = 2
    tell_clone(seed, server)
    take(home, seed)
    assert server.lose_answers == 0
    assert [one.cloned_from for one in server.machines()].count(joined.id) == 1
    assert server.machine_of(home).cloned_from == joined.id


def test_the_machine_itself_keeps_its_identity(
    server: Server, home: Path, seed: Path, joined: Machine
) -> None:
    """Its identity.json came back from an old backup."""
    (home / "identity.json").write_text('{"instance_id": "i-1", "hardware_id": "older"}')
    tell_clone(seed, server, HERE)
    take(home, seed)
    assert server.machine_of(home) == joined
    assert identity(home)["hardware_id"] == HERE
    assert not seed.exists()


def test_the_copy_of_a_revoked_machine_waits_for_a_code(
    server: Server, home: Path, seed: Path, joined: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    server.revoke(joined)
    tell_clone(seed, server)
    with waiting(home, seed) as worker:
        until(lambda: "not know this machine" in capsys.readouterr().err, "it says why it waits")
        assert worker.waits
        assert len(server.machines()) == 1
        tell_join(seed, server, instance_id="i-2", hardware_id=THERE)
        worker.join()
    now = server.machine_of(home)
    assert now.id != joined.id
    assert now.cloned_from is None


def test_a_running_worker_that_is_a_copy_goes_on_as_another_machine(
    server: Server, home: Path, joined: Machine
) -> None:
    Joining(home, threading.Event()).as_copy(THERE)
    assert server.machine_of(home).cloned_from == joined.id
    assert identity(home) == {"instance_id": "i-1", "hardware_id": THERE}


@pytest.fixture
def refuse(
    server: Server, home: Path, joined: Machine, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Let the coordinator refuse the copy for good, for one of the reasons that there are."""

    def revoke_the_copy() -> None:
        original = load_profile(home)
        Joining(home, threading.Event()).as_copy(THERE)
        server.revoke(server.machine_of(home))
        save_profile(original, home)  # the disk was reset

    def another_role() -> None:
        server._write(lambda tx: tx.put_machine(replace(joined, role="agent")))
        server.here.forget_callers()

    reasons = {
        "revoked copy": revoke_the_copy,
        "too many": lambda: monkeypatch.setattr(identity_service, "MOST_CLONES", 0),
        "role": another_role,
    }
    return lambda reason: reasons[reason]()


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("revoked copy", "was revoked"),
        ("too many", "no further copy"),
        ("role", "only a worker's"),
    ],
)
def test_a_running_copy_that_is_refused_says_so_once_and_waits(
    server: Server, home: Path, refuse: Callable[[str], None], reason: str, words: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    refuse(reason)
    before = (home / "profile.json").read_bytes()
    monkeypatch.setattr(joining, "REFUSED_AGAIN_S", 0.1)
    asked = len(server.asked)
    with waiting(home) as worker:
        until(lambda: len(server.asked) >= asked + 3, "it asks again after a while")
        monkeypatch.setattr(joining, "REFUSED_AGAIN_S", 3600.0)
        time.sleep(0.3)
        asked = len(server.asked)
        time.sleep(0.3)
        assert len(server.asked) == asked, "it asks no more often than that"
        assert worker.waits
        worker.stop()
        assert isinstance(worker.ended_with, Stopped)
    said = [line for line in capsys.readouterr().err.splitlines() if "joining." in line]
    refused = [line for line in said if "joining.refused" in line]
    assert len(refused) == 1, said
    assert words in refused[0]
    assert "officegrid" in refused[0], "it says what helps"
    assert "another seed" not in refused[0], "no seed file is looked at"
    assert (home / "profile.json").read_bytes() == before


def test_a_running_copy_of_a_revoked_machine_waits_too(
    server: Server, home: Path, joined: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    server.revoke(joined)
    asked = len(server.asked)
    with waiting(home) as worker:
        until(lambda: len(server.asked) >= asked + 3, "it asks again after a while")
        assert worker.waits
    assert capsys.readouterr().err.count("not know this machine") == 1


def test_a_refusal_that_the_admin_ends_is_over_at_the_next_try(
    server: Server, home: Path, joined: Machine, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(joining, "REFUSED_AGAIN_S", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(identity_service, "MOST_CLONES", 0)
        with waiting(home) as worker:
            until(lambda: "joining.refused" in capsys.readouterr().err, "it says why it waits")
            patch.setattr(identity_service, "MOST_CLONES", 1)
            worker.join()
            assert worker.ended_with is None
    assert server.machine_of(home).cloned_from == joined.id


def test_a_waiting_copy_goes_on_when_it_is_joined_by_hand(
    server: Server, home: Path, refuse: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the refusal says; not an hour later."""
    refuse("revoked copy")
    with waiting(home) as worker:
        until(lambda: "joining.refused" in capsys.readouterr().err, "it says why it waits")
        save_profile(join(server.url, server.code(), name="by hand", facts={}), home)
        worker.join()
        assert worker.ended_with is None
    assert server.machine_of(home).name == "by hand"


def test_the_worker_itself_stays_up_while_it_is_refused(
    server: Server, home: Path, joined: Machine, refuse: Callable[[str], None], tmp_path: Path
) -> None:
    """To end would have it started again every two seconds: an alarm each time."""
    refuse("revoked copy")
    log = tmp_path / "worker.log"
    asked = len(server.asked)
    env = {**os.environ, "OFFICEGRID_HOME": str(home), "OFFICEGRID_HARDWARE_ID": THERE}
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "officegrid", "worker"], env=env, stdout=out, stderr=out
        )
    try:
        until(lambda: "joining.refused" in log.read_text(), "it says why it waits")
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(2)
        assert server.asked[asked:].count("/v1/claim") == 1
        worker.terminate()
        assert worker.wait(20) == 0
    finally:
        worker.kill()
        worker.wait()
    assert log.read_text().count("joining.refused") == 1


@pytest.mark.parametrize("hardware", ["\x00", "😀" * 64, " ", "\n\x1b[2J", "../../etc", "x" * 64])
def test_strange_hardware_is_another_computer_all_the_same(
    server: Server, home: Path, joined: Machine, hardware: str
) -> None:
    Joining(home, threading.Event()).as_copy(hardware)
    now = server.machine_of(home)
    assert now.cloned_from == joined.id
    assert now.name.isprintable()


@pytest.mark.parametrize(
    "body", [{}, {"hardware_id": "", "name": "x"}, {"hardware_id": "h" * 65, "name": "x"},
             {"hardware_id": "h", "name": ""},
             {"hardware_id": "h", "name": "x", "facts": {"f": "x" * 20_000}}],
)  # fmt: skip
def test_what_is_no_request_for_a_copy_is_refused(
    server: Server, home: Path, joined: Machine, body: dict[str, Any]
) -> None:
    profile = load_profile(home)
    context = tls_context(profile.ca_pem)
    headers = {"Authorization": f"Bearer {profile.token}"}
    with httpx2.Client(base_url=server.url, verify=context, trust_env=False) as client:
        assert client.post("/v1/machine/clone", json=body).status_code == 401
        answer = client.post("/v1/machine/clone", json=body, headers=headers)
    assert answer.status_code in (413, 422)
    assert server.machines() == [joined]
