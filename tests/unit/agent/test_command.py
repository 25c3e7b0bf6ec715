"""External commands: time limits, process groups, locale, decoding, daemons left behind."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from officegrid.agent.drivers import command
from officegrid.agent.drivers.command import (
    CommandCancelled,
    CommandMissing,
    CommandTimeout,
    decode,
    run,
)


def python(code: str, *args: str) -> list[str]:
    return [sys.executable, "-c", code, *args]


def wait_for(condition, deadline_s: float = 10.0) -> bool:  # type: ignore[no-untyped-def]
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return False


def pid_in(path: Path) -> int:
    assert wait_for(lambda: path.exists() and path.read_text().strip()), "it never wrote its pid"
    return int(path.read_text())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_output_exit_code_and_both_streams() -> None:
    finished = run(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"),
        timeout_s=20,
    )
    assert (finished.exit_code, finished.stdout, finished.stderr) == (3, "out\n", "err\n")
    assert finished.argv[0] == sys.executable
    assert 0 < finished.seconds < 20
    assert not finished.cut


def test_input_arrives_and_stdin_is_empty_otherwise() -> None:
    echo = python("import sys; sys.stdout.write(sys.stdin.read().upper())")
    assert run(echo, timeout_s=20, input="grüße").stdout == "GRÜSSE"
    assert run(echo, timeout_s=20).stdout == ""


def test_input_that_nobody_reads_does_not_block() -> None:
    assert run(python("pass"), timeout_s=20, input=b"x" * 5_000_000).exit_code == 0


def test_the_locale_is_c_and_env_is_laid_over_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("GRID_KEEP", "kept")
    monkeypatch.setenv("GRID_DROP", "dropped")
    show = python(
        "import os; print([os.environ.get(k) for k in"
        " ('LC_ALL', 'LANG', 'GRID_KEEP', 'GRID_DROP', 'GRID_NEW')])"
    )
    finished = run(show, timeout_s=20, env={"GRID_NEW": "new", "GRID_DROP": None})
    assert finished.stdout == "['C', 'C', 'kept', None, 'new']\n"


def test_a_missing_program_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CommandMissing, match="no-such-program"):
        run([tmp_path / "no-such-program"], timeout_s=5)
    plain = tmp_path / "plain.txt"
    plain.write_text("not a program")
    with pytest.raises(CommandMissing):
        run([plain], timeout_s=5)


def test_time_out_kills_the_command_and_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child.pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "print('so far', flush=True)\n"
        "time.sleep(600)\n"
    )
    started = time.monotonic()
    with pytest.raises(CommandTimeout) as caught:
        run(python(code, str(note)), timeout_s=3)
    assert time.monotonic() - started < 10
    assert caught.value.timeout_s == 3
    assert caught.value.stdout == "so far\n"
    child = pid_in(note)
    assert wait_for(lambda: gone(child)), "the child outlived its parent's time-out"


def test_a_command_that_ignores_polite_signals_is_killed_too() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    with pytest.raises(CommandTimeout):
        run(python(code), timeout_s=1)


@pytest.mark.skipif(os.name != "posix", reason="a daemon in another session is a POSIX matter")
def test_a_daemon_that_keeps_the_pipes_open_does_not_hold_us_up(tmp_path: Path) -> None:
    note = tmp_path / "daemon.pid"
    code = (
        "import subprocess, sys\n"
        "daemon = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(str(daemon.pid))\n"
        "print('started')\n"
        "daemon.returncode = 0\n"
    )
    started = time.monotonic()
    finished = run(python(code, str(note)), timeout_s=60)
    assert time.monotonic() - started < 20
    assert (finished.exit_code, finished.stdout) == (0, "started\n")
    daemon = pid_in(note)
    assert not gone(daemon), "what the command leaves behind on purpose must live on"
    psutil.Process(daemon).kill()


def test_cancel_ends_it_soon() -> None:
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(CommandCancelled):
        run(python("import time; time.sleep(600)"), timeout_s=60, cancel=cancel)
    assert time.monotonic() - started < 10


def test_endless_output_is_cut_and_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "MOST_OUTPUT_BYTES", 1000)
    finished = run(python("print('x' * 3_000_000)"), timeout_s=20)
    assert (len(finished.stdout), finished.cut) == (1000, True)


def test_decoding() -> None:
    assert decode(b"one\r\ntwo\n") == "one\ntwo\n"
    assert decode("\ufeffname".encode()) == "name"
    assert decode("status: läuft".encode("utf-16")) == "status: läuft"
    assert "l" in decode(b"l\xe4uft")  # neither UTF-8 nor lost


def test_a_quick_command_is_noticed_quickly() -> None:
    program = "/bin/true" if os.name == "posix" else "whoami"
    best = min(run([program], timeout_s=5).seconds for _ in range(10))
    assert best < 0.25


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ionice is Linux's")
def test_in_the_background_means_the_lowest_priority() -> None:
    code = (
        "import os, psutil, sys; sys.stdin.read();"
        "print(os.getpriority(os.PRIO_PROCESS, 0), int(psutil.Process().ionice().ioclass))"
    )
    idle = int(psutil.IOPRIO_CLASS_IDLE)
    done = run(python(code), timeout_s=10, input="x", background=True)
    assert done.stdout.split() == ["19", str(idle)]
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    done = run(python(code), timeout_s=10, input="x")
    assert done.stdout.split()[0] == str(ours)


def test_work_in_the_background_returns_and_raises_as_it_would_here() -> None:
    assert command.in_background(lambda: 7) == 7

    def fails() -> None:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        command.in_background(fails)
