"""What was acknowledged survives `kill -9`; a full disk is told, changes nothing, and passes."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path

import pytest

from officegrid.core.errors import UnavailableError
from officegrid.core.invariants import check_leases, check_tiling
from officegrid.core.model import Span, SpanState
from officegrid.storage.api import Tx
from officegrid.storage.sqlite import SqliteStorage
from officegrid.testing.storage_edits import new_job

CHILD = Path(__file__).with_name("crash_child.py")
SEED = int(os.environ.get("OFFICEGRID_CRASH_SEED", "20240607"))
KILLS = 8


def _run_and_kill(database: Path, first: int, rng: random.Random) -> int:
    """Start the child, kill it at a random moment; the last number it acknowledged."""
    command = [sys.executable, str(CHILD), str(database), str(rng.randrange(2**31)), str(first)]
    acknowledged = first - 1
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(rng.randint(1, 60)):
            line = child.stdout.readline()
            assert line, "the child stopped by itself"
            acknowledged = int(line)
        # The kill itself falls anywhere in a write: this is the fault injected, not a wait.
        time.sleep(rng.uniform(0, 0.004))
        child.send_signal(signal.SIGKILL)
        for line in child.stdout:
            if line.endswith("\n"):
                acknowledged = int(line)
        assert child.wait(30) == -signal.SIGKILL
    return acknowledged


def _check(tx: Tx) -> int:
    """All invariants of the crash job; the last sequence number stored."""
    job = tx.job("crash")
    assert job is not None
    spans = [Span(a, b, SpanState(c), d) for a, b, c, d in tx.spans("crash")]
    report = check_tiling(spans, job.total)
    live = tx.ledger("crash").live_leases()
    check_leases(spans, live)
    counters = (job.pending, job.leased, job.done, job.quarantined)
    assert counters == tuple(report.records[state] for state in SpanState)
    assert job.live_leases == len(live)
    parts = tx.parts("crash", limit=1_000_000)
    assert (job.units, job.records_out) == (len(parts), sum(p.records_out for p in parts))
    assert sum(p.end - p.start for p in parts) == job.done + job.quarantined
    events = tx.events("crash", limit=1_000_000)
    last = int(tx.setting("sequence") or "0")
    assert [event.text for event in events] == [str(n) for n in range(1, last + 1)]
    return last


def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    print(f"replay: OFFICEGRID_CRASH_SEED={SEED} pytest {__file__} -k kill_9")
    rng = random.Random(SEED)
    database, first = tmp_path / "grid.sqlite", 1
    for _ in range(KILLS):
        acknowledged = _run_and_kill(database, first, rng)
        storage = SqliteStorage(database)
        try:
            last = storage.read(_check)
        finally:
            storage.close()
        assert last >= acknowledged >= first
        first = last + 1


# a full disk


def _fill_then_refuse(storage: SqliteStorage) -> int:
    """Write until the disk refuses; every result of that group must say so. Returns writes made."""
    for number in range(1000):
        text = f"{number} " + "x" * 50_000
        group = [
            methodcaller("put_setting", f"big-{number}", text),
            methodcaller("put_setting", "last", str(number)),
        ]
        done = storage.write_many(group)
        if any(x.error is not None for x in done):
            for x in done:
                assert isinstance(x.error, UnavailableError), x.error
                assert x.error.what
                assert x.error.why
                assert x.error.fix
            return number
    raise AssertionError("the disk never became full")


def _check_after_refusal(storage: SqliteStorage, made: int) -> None:
    assert made > 0
    assert storage.read(lambda tx: tx.setting("last")) == str(made - 1)
    assert storage.read(lambda tx: tx.setting(f"big-{made}")) is None


def _check_usable(storage: SqliteStorage) -> None:
    storage.write(lambda tx: tx.add_job(new_job("after", 10)))
    for number in range(40):
        storage.write(methodcaller("put_setting", f"more-{number}", "y" * 50_000))
    assert storage.read(lambda tx: tx.job("after")) is not None


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        reason = "needs root to mount a small disk; the file size test covers the same errors"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine may not mount; the file size test covers the same errors")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_all_and_recovers(tmp_path: Path) -> None:
    with _small_disk(tmp_path):
        storage = SqliteStorage(tmp_path / "grid.sqlite")
        try:
            made = _fill_then_refuse(storage)
            _check_after_refusal(storage, made)
            grow = ["mount", "-o", "remount,size=64m", str(tmp_path)]
            subprocess.run(grow, check=True)
            _check_usable(storage)
        finally:
            storage.close()


def limited_child(database: str) -> None:
    """Runs in a process of its own: the largest file allowed is small, then large again."""
    storage = SqliteStorage(database)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    made = _fill_then_refuse(storage)
    _check_after_refusal(storage, made)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    _check_usable(storage)
    storage.close()


def test_a_file_size_limit_refuses_all_and_recovers(tmp_path: Path) -> None:
    database = tmp_path / "grid.sqlite"
    command = [sys.executable, __file__, str(database)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    storage = SqliteStorage(database)
    try:
        assert storage.read(lambda tx: tx.setting("more-39")) == "y" * 50_000
    finally:
        storage.close()


if __name__ == "__main__":
    limited_child(sys.argv[1])
