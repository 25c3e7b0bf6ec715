"""The driver contract on native processes, by control groups of both kinds and by signals; and
what only this driver promises: the whole tree, low priority, caps, life beyond the agent."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from process_programs import burner, count_in, counter, family, forker, glutton

from acceptance.grid import Grid
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.process.driver import ProcessDriver
from officegrid.core.errors import UsageError
from officegrid.core.joincode import format_code
from officegrid.core.vm import HealthLevel, Trouble, VmState
from officegrid.testing.driver_conformance import DriverConformance
from officegrid.testing.driver_harness import DriverHarness, alive, is_, refusal, wait_until
from parts import without

if sys.platform == "win32":
    pytest.skip("POSIX: Windows has tests of its own", allow_module_level=True)

from officegrid.agent.drivers.process import cgroups, posix

Opens = Callable[[VmSettings], ProcessDriver]


def open_v2(settings: VmSettings) -> ProcessDriver:
    """Control groups, version 2 where there are both."""
    bases = cgroups.find_bases()
    if bases.unified is None:
        without("this machine, or this user, has no control groups of version 2")
    return ProcessDriver(settings)


def open_v1(settings: VmSettings) -> ProcessDriver:
    """Control groups of version 1 only."""
    bases = dataclasses.replace(cgroups.find_bases(), unified=None, unified_controllers=frozenset())
    if "freezer" not in bases.v1:
        pytest.skip("this machine has no control groups of version 1; few still do")
    group = cgroups.ControlGroup(posix.group_name(settings.name, settings.folder), bases)
    return ProcessDriver(settings, posix.PosixKeeper(settings.name, settings.folder, group))


def open_signals(settings: VmSettings) -> ProcessDriver:
    """SIGSTOP and SIGCONT."""
    return ProcessDriver(
        dataclasses.replace(settings, options={**settings.options, "control_groups": False})
    )


WAYS = {"v2": open_v2, "v1": open_v1, "signals": open_signals}


def settings_for(folder: Path, command: list[str] | None, **changes: Any) -> VmSettings:
    folder.mkdir(exist_ok=True)
    options = {} if command is None else {"command": command}
    return VmSettings("Grid Machine", folder, memory_mb=256, options=options, **changes)


class ProcessHarness(DriverHarness):
    boot_s = restore_s = settle_s = 10.0
    still_s = 0.2

    def __init__(self, opens: Opens, folder: Path) -> None:
        self.opens = opens
        self.file = folder / "ours.count"
        self.settings = settings_for(folder / "ours", counter(self.file))
        self.group = posix.group_name(self.settings.name, self.settings.folder)
        # The other one is of the same name and program, in another agent's folder.
        self.other = opens(settings_for(folder / "theirs", counter(folder / "theirs.count")))
        self.other.start(threading.Event())

    def make(self, *, image: Path | None = None) -> ProcessDriver:
        return self.opens(self.settings)

    def progress(self) -> int:
        return count_in(self.file)

    def kill_vm(self) -> None:
        note = json.loads((self.settings.folder / "process.json").read_bytes())
        os.kill(note["pid"], signal.SIGKILL)
        # A frozen process of version 1 dies when it is thawed; of version 2, and a stopped one,
        # at once.
        for state in Path("/sys/fs/cgroup/freezer").glob(f"**/{self.group}/freezer.state"):
            state.write_text("THAWED")

    def foreign_things(self) -> object:
        status = self.other.state()
        folder = self.other.settings.folder
        return status, {path.name: path.read_bytes() for path in folder.iterdir()}

    def close(self) -> None:
        self.make().stop()
        self.other.stop()


class _Conformance(DriverConformance):
    opens: Opens

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[ProcessHarness]:
        harness = ProcessHarness(type(self).opens, tmp_path)
        yield harness
        harness.close()


class TestControlGroups(_Conformance):
    opens = staticmethod(open_v2)


class TestControlGroupsVersion1(_Conformance):
    opens = staticmethod(open_v1)


class TestSignals(_Conformance):
    opens = staticmethod(open_signals)


# -- what only this driver promises -------------------------------------------------------------


@pytest.fixture(params=WAYS)
def opens(request: pytest.FixtureRequest) -> Iterator[Opens]:
    """Each way of keeping processes; whatever was opened is ended."""
    opened: list[ProcessDriver] = []

    def opening(settings: VmSettings) -> ProcessDriver:
        opened.append(WAYS[request.param](settings))
        return opened[-1]

    yield opening
    for driver in opened:
        driver.stop()


def start(driver: ProcessDriver) -> ProcessDriver:
    driver.start(threading.Event())
    return driver


def counts(folder: Path) -> dict[str, int]:
    return {name: count_in(folder / f"{name}.count") for name in ("child", "grandchild", "orphan")}


def test_the_whole_family_pauses_goes_on_and_dies(opens: Opens, tmp_path: Path) -> None:
    driver = start(opens(settings_for(tmp_path / "vm", family(tmp_path))))
    wait_until(lambda: min(counts(tmp_path).values()) > 2, 15, "all of the family count")
    assert len(driver.state().pids) == 4
    driver.pause()
    before = counts(tmp_path)
    time.sleep(0.2)
    assert counts(tmp_path) == before
    driver.resume()
    wait_until(
        lambda: all(now > before[who] for who, now in counts(tmp_path).items()), 10, "all go on"
    )
    pids = driver.state().pids
    driver.pause()
    driver.stop()
    assert not [pid for pid in pids if alive(pid)], "some outlived stop"
    is_(driver, VmState.OFF)


def test_a_program_that_forks_all_the_time_is_stopped_too(opens: Opens, tmp_path: Path) -> None:
    file = tmp_path / "dots"
    driver = start(opens(settings_for(tmp_path / "vm", forker(file))))
    wait_until(lambda: file.exists() and file.stat().st_size > 100, 15, "it forks")
    for _ in range(3):
        driver.pause()
        before = file.stat().st_size
        time.sleep(0.1)
        assert file.stat().st_size == before, "a child escaped the pause"
        is_(driver, VmState.PAUSED)
        driver.resume()
        wait_until(lambda before=before: file.stat().st_size > before, 10, "it goes on")  # type: ignore[misc]
    driver.stop()
    before = file.stat().st_size
    time.sleep(0.1)
    assert file.stat().st_size == before, "a child escaped the kill"


def test_what_an_ended_worker_leaves_is_named_and_ended(opens: Opens, tmp_path: Path) -> None:
    driver = start(opens(settings_for(tmp_path / "vm", family(tmp_path))))
    wait_until(lambda: min(counts(tmp_path).values()) > 2, 15, "all of the family count")
    pids = driver.state().pids
    root = json.loads((tmp_path / "vm" / "process.json").read_bytes())["pid"]
    os.kill(root, signal.SIGKILL)
    wait_until(lambda: not alive(root), 5, "the first process is gone")
    left = is_(driver, VmState.BROKEN)
    assert set(left.pids) == set(pids) - {root}
    assert "3 of its processes" in left.detail
    driver.pause()
    before = counts(tmp_path)
    time.sleep(0.2)
    assert counts(tmp_path) == before, "what it left takes the CPU although paused"
    is_(opens(driver.settings), VmState.BROKEN)  # to the next agent, too
    driver.start(threading.Event())
    assert not [pid for pid in pids if alive(pid)], "the old family runs beside the new one"
    is_(driver, VmState.RUNNING)


def test_stop_ends_what_an_ended_worker_leaves(opens: Opens, tmp_path: Path) -> None:
    driver = start(opens(settings_for(tmp_path / "vm", family(tmp_path))))
    wait_until(lambda: min(counts(tmp_path).values()) > 2, 15, "all of the family count")
    pids = driver.state().pids
    root = json.loads((tmp_path / "vm" / "process.json").read_bytes())["pid"]
    os.kill(root, signal.SIGKILL)
    wait_until(lambda: not alive(root), 5, "the first process is gone")
    driver.stop()
    assert not [pid for pid in pids if alive(pid)]
    is_(driver, VmState.OFF)


def test_it_runs_at_the_lowest_priorities(opens: Opens, tmp_path: Path) -> None:
    driver = start(opens(settings_for(tmp_path / "vm", counter(tmp_path / "c"))))
    (pid,) = driver.state().pids
    assert os.getsid(pid) == pid
    for _ in range(2):  # when started, and when it goes on after a pause
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        if sys.platform == "linux":
            assert os.sched_getscheduler(pid) == os.SCHED_IDLE
            assert psutil.Process(pid).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
            assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
        driver.pause()
        driver.resume()


def test_a_glutton_meets_its_memory_cap(opens: Opens, tmp_path: Path) -> None:
    fits, bursts = tmp_path / "fits", tmp_path / "bursts"
    driver = start(opens(settings_for(tmp_path / "a", glutton(fits, 100))))
    wait_until(fits.exists, 20, "100 MB of 256 are had")
    driver.stop()
    driver = start(opens(settings_for(tmp_path / "b", glutton(bursts, 600))))
    wait_until(lambda: driver.state().state is VmState.OFF, 30, "the cap ends it")
    assert not bursts.exists(), "it got 600 MB with a cap of 256"


def test_the_cpu_cap_holds(opens: Opens, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "vm", burner(), cpu_cap_percent=20)
    driver = opens(settings)
    if not driver.capabilities().cpu_cap:
        assert driver.detect().level is HealthLevel.DEGRADED
        assert "CPU share is not capped" in driver.detect().sentence
        return
    start(driver)
    (pid,) = driver.state().pids
    process = psutil.Process(pid)
    wait_until(lambda: process.cpu_times().user > 0.05, 20, "it burns")
    began, used = time.monotonic(), process.cpu_times().user
    time.sleep(1.5)
    share = (process.cpu_times().user - used) / (time.monotonic() - began)
    assert share < 0.35, f"it used {share:.0%} of a core with a cap of 20 %"


def test_pid_reuse_does_not_deceive_it(opens: Opens, tmp_path: Path) -> None:
    driver = opens(settings_for(tmp_path / "vm", counter(tmp_path / "c")))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        try:
            note = {"pid": other.pid, "born": "another boot/12345"}
            (tmp_path / "vm" / "process.json").write_text(json.dumps(note))
            assert is_(driver, VmState.OFF).pids == ()
            driver.stop()
            assert other.poll() is None, "it killed a process that is not ours"
        finally:
            other.kill()


@pytest.mark.parametrize("note", [b"", b"null", b'{"pid": "x"}', b"\xff\x00"])
def test_a_damaged_note_means_off(opens: Opens, tmp_path: Path, note: bytes) -> None:
    driver = opens(settings_for(tmp_path / "vm", counter(tmp_path / "c")))
    (tmp_path / "vm" / "process.json").write_bytes(note)
    is_(driver, VmState.OFF)
    start(driver)
    is_(driver, VmState.RUNNING)


AGENT = """
import sys, threading, time
from pathlib import Path
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.process.driver import ProcessDriver
options = {"command": sys.argv[2:]}
driver = ProcessDriver(VmSettings("Grid Machine", Path(sys.argv[1]), 256, options=options))
driver.start(threading.Event())
print("started", flush=True)
time.sleep(600)
""".replace("Path(sys.argv[1]), 256,", "Path(sys.argv[1]), memory_mb=256,")


def test_it_outlives_an_agent_that_is_killed_with_its_whole_group(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "vm", counter(tmp_path / "c"))
    argv = [sys.executable, "-c", AGENT, str(settings.folder), *counter(tmp_path / "c")]
    agent = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    with agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"started\n"
        os.killpg(agent.pid, signal.SIGKILL)
    driver = ProcessDriver(settings)
    try:
        is_(driver, VmState.RUNNING)
        before = count_in(tmp_path / "c")
        wait_until(lambda: count_in(tmp_path / "c") > before, 10, "it goes on")
    finally:
        driver.stop()
    is_(driver, VmState.OFF)


def test_it_gives_way_at_once_beside_busy_programs(opens: Opens, tmp_path: Path) -> None:
    driver = start(opens(settings_for(tmp_path / "vm", family(tmp_path))))
    wait_until(lambda: min(counts(tmp_path).values()) > 2, 15, "all of the family count")
    busy = [subprocess.Popen(burner()) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        took = []
        for _ in range(5):
            began = time.monotonic()
            driver.pause()
            took.append(time.monotonic() - began)
            driver.resume()
        assert max(took) < 1.0, f"the PC is to be given back within a second: {took}"
        pids, began = driver.state().pids, time.monotonic()
        driver.stop()
        assert time.monotonic() - began < 2.0
        assert not [pid for pid in pids if alive(pid)]
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_program_that_cannot_be_started_is_told(opens: Opens, tmp_path: Path) -> None:
    driver = opens(settings_for(tmp_path / "vm", [str(tmp_path / "no-such-program")]))
    error = refusal(lambda: driver.start(threading.Event()), Trouble.FAILED)
    assert "FileNotFoundError" in error.why
    is_(driver, VmState.OFF)


def test_last_words_of_a_worker_that_ended(opens: Opens, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import sys; print('first'); sys.exit('disk on fire')"]
    driver = start(opens(settings_for(tmp_path / "vm", argv)))
    wait_until(lambda: driver.state().state is VmState.OFF, 10, "it ends")
    assert "Last line of its log: disk on fire" in driver.state().detail


def test_the_log_is_turned_over(tmp_path: Path) -> None:
    driver = ProcessDriver(settings_for(tmp_path / "vm", ["/bin/true"]))
    log = tmp_path / "vm" / "worker.log"
    log.write_bytes(b"x" * (5 << 20))
    start(driver)
    wait_until(lambda: driver.state().state is VmState.OFF, 10, "it ends")
    assert (tmp_path / "vm" / "worker.log.1").stat().st_size == 5 << 20
    assert log.stat().st_size == 0
    driver.delete()
    assert list((tmp_path / "vm").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [({"slot": 2}, "slots, command"), ({"slots": "2"}, "whole number"), ({"slots": 0}, "not 0"),
     ({"command": "sleep 5"}, "list of words"), ({"log": 1}, "true or false")],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=next(iter(options))) as caught:
        ProcessDriver(VmSettings("x", tmp_path, options=options))
    assert word in caught.value.why


def test_control_groups_are_found_where_they_are(tmp_path: Path) -> None:
    # A desktop with version 2 under systemd, and an old one with both.
    v2, v1 = tmp_path / "v2", tmp_path / "memory"
    own = v2 / "system.slice" / "agent.service"
    own.mkdir(parents=True)
    (own / "cgroup.procs").write_text("123\n")
    (own / "cgroup.controllers").write_text("cpu memory pids")
    (own / "cgroup.subtree_control").write_text("")
    (v1 / "deep").mkdir(parents=True)
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text(
        f"30 1 0:26 / {v2} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
        f"31 1 0:27 / {v1} rw - cgroup cgroup rw,memory\n"
    )
    (proc / "cgroup").write_text("4:memory:/deep\n0::/system.slice/agent.service\n")
    bases = cgroups.find_bases(proc)
    assert (bases.unified, bases.v1) == (own, {"memory": v1 / "deep"})
    # The agent itself is in that group, so version 2 gives it freezing but no limits.
    assert bases.can("freezer")
    assert bases.can("memory"), "version 1 has it"
    assert not bases.can("cpu")
    (own / "cgroup.procs").write_text("")
    assert cgroups.find_bases(proc).can("cpu")
    (proc / "mountinfo").write_text("nonsense\n")
    assert not cgroups.find_bases(proc).can("freezer")


# -- joining the grid ---------------------------------------------------------------------------


def seed(folder: Path, **fields: object) -> Path:
    folder.mkdir()
    (folder / "officegrid.json").write_text(json.dumps(fields))
    return folder


def test_without_a_seed_it_says_what_is_missing(tmp_path: Path) -> None:
    driver = ProcessDriver(settings_for(tmp_path / "vm", None, seed_folder=tmp_path / "seed"))
    error = refusal(lambda: driver.start(threading.Event()), Trouble.FAILED)
    assert "officegrid.json" in error.why
    seed(tmp_path / "seed", url="https://127.0.0.1:1", code=5)
    error = refusal(lambda: driver.start(threading.Event()), Trouble.FAILED)
    assert "url or code" in error.why
    is_(driver, VmState.OFF)


def test_a_join_that_fails_is_told_with_the_reason(tmp_path: Path) -> None:
    given = seed(tmp_path / "seed", url="https://127.0.0.1:9", code="not-a-code")
    driver = ProcessDriver(settings_for(tmp_path / "vm", None, seed_folder=given))
    error = refusal(lambda: driver.start(threading.Event()), Trouble.FAILED)
    assert error.what == "The worker could not join the grid."
    assert "code" in error.why
    is_(driver, VmState.OFF)
    assert not list((tmp_path / "vm" / "home").rglob("profile.json"))


def test_the_real_worker_joins_pauses_and_is_seen(tmp_path: Path) -> None:
    grid = Grid(tmp_path / "grid")
    driver: ProcessDriver | None = None
    try:
        grid.start()
        given = seed(tmp_path / "seed", url=grid.url, code=grid.code("worker"), name="native-1")
        driver = ProcessDriver(settings_for(tmp_path / "vm", None, seed_folder=given))
        start(driver)
        home = tmp_path / "vm" / "home"
        wait_until((home / "worker").exists, 30, "the worker runs")
        profile = (home / "profile.json").read_bytes()
        driver.pause()
        is_(driver, VmState.PAUSED)
        driver.resume()
        driver.stop()
        start(driver)
        assert (home / "profile.json").read_bytes() == profile, "it joined a second time"
        is_(driver, VmState.RUNNING)
        # A code under another instance id: the desk is another machine from now on.
        driver.stop()
        told = json.loads((given / "officegrid.json").read_text())
        told |= {"code": grid.code("worker"), "instance_id": "made-anew"}
        (given / "officegrid.json").write_text(json.dumps(told))
        start(driver)
        assert (home / "profile.json").read_bytes() != profile
    finally:
        if driver is not None:
            driver.stop()
        grid.close()


def test_a_join_that_nobody_answers_can_be_cancelled(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        given = seed(
            tmp_path / "seed",
            url=f"https://127.0.0.1:{port}",
            code=format_code(bytes(15), bytes(32)),
        )
        driver = ProcessDriver(settings_for(tmp_path / "vm", None, seed_folder=given))
        cancel = threading.Event()

        def strike() -> None:
            with suppress(OSError):
                silent.settimeout(20)
                connection, _ = silent.accept()
                with connection:
                    cancel.set()
                    time.sleep(1)

        striker = threading.Thread(target=strike)
        striker.start()
        refusal(lambda: driver.start(cancel), Trouble.CANCELLED)
        assert cancel.is_set()
        striker.join()
        is_(driver, VmState.OFF)
