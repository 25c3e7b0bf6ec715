"""`python -m bench deltas`: bytes on the wire for an update, beside rsync and a full download.

Three updates: a CSV data set of which 1 % of the rows changed at random places, the same with as
many rows new at its front, and a folder of 1,000 program files of which one changed. rsync is the
real one: a daemon on 127.0.0.1 that has the new version, and clients that have the old one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.deltas_rsync import RSYNC, Daemon, Pull
from bench.report import Figure, heading, show

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 10
PLAIN, PACKED = ("",), ("-z", "--compress-choice=zstd")
FINE = ("-z", "--compress-choice=zstd", "--block-size=700")
MB = 1e6


@dataclass(frozen=True)
class Update:
    name: str
    old: Path
    new: Path


def run(folder: Path, megabytes: int) -> None:
    """Print the figures of each update."""
    heading(f"Deltas, beside rsync and a full download; {WORKERS} workers")
    here = folder / "deltas"
    here.mkdir()
    if RSYNC is None:
        show(Figure("rsync", "is not installed: no comparison"))
    for update in _updates(here, megabytes):
        _measure(here, update)
        for path in (update.new, here / "work"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _measure(here: Path, update: Update) -> None:
    work = here / "work"
    work.mkdir()
    old_stream, new_stream, delta = work / "old", work / "new", work / "delta"
    print(f" {update.name}", flush=True)
    bare = _probe("nothing")
    _probe("full", update.old, old_stream)
    full = _probe("full", update.new, new_stream)
    made = _probe("make", old_stream, new_stream, delta)
    applied = _probe("apply", update.old, delta, work / "out")
    assert _same(work / "out", update.new), "the update went wrong"
    serve_s = _serving_s(delta)
    ours_s = made["cpu_s"] - bare["cpu_s"] + serve_s
    show(
        Figure("raw", f"{full['raw_bytes'] / MB:.1f} MB"),
        Figure("full download", f"{_size(full['bytes'])}, {_cpu(full, bare)} to cut, once"),
        Figure("delta", f"{_size(made['bytes'])}, {made['bytes'] / full['bytes']:.4f} of full"),
    )
    if RSYNC is not None:
        _beside_rsync(work, update, made["bytes"], ours_s)
    show(
        Figure("make, once", f"{_cpu(made, bare)}, {made['wall_s']:.2f} s, {_peak(made)}"),
        Figure(f"serve {WORKERS} times", f"{serve_s * 1000:.1f} ms CPU (TCP, without TLS)"),
        Figure("apply", f"{_cpu(applied, bare)}, {applied['wall_s']:.2f} s"),
        Figure("memory of apply", f"{_peak(applied)}, {_peak(bare)} of it bare", "aim < 200 MB"),
    )


def _beside_rsync(work: Path, update: Update, ours_bytes: float, ours_s: float) -> None:
    """Its bytes in three ways, and the sender's CPU for all workers in the usual one."""
    best = float("inf")
    for options in (PLAIN, PACKED, FINE):
        times = WORKERS if options == PACKED else 1
        pulls, sender_s = _pulled(work, update, options, times)
        pull = pulls[0]
        best = min(best, pull.bytes)
        name = " ".join(("rsync", *options)).replace("--compress-choice=", "").strip()
        ratio = f"delta/rsync {ours_bytes / pull.bytes:.4f}"
        bar = "aim <= 1.1"
        show(Figure(name.replace("--block-size=", "-B "), f"{_size(pull.bytes)}, {ratio}", bar))
        if times == WORKERS:
            text = f"{sender_s:.2f} s CPU of its sender, ours {ours_s:.2f} s: "
            show(Figure(f"  {WORKERS} updates", f"{text}ours/rsync {ours_s / sender_s:.2f}"))
            show(Figure("  one update", f"{sender_s / WORKERS:.2f} s CPU of its sender"))
    show(Figure("beside rsync's best", f"{ours_bytes / best:.4f}", "aim <= 1.1"))


def _pulled(
    work: Path, update: Update, options: tuple[str, ...], times: int
) -> tuple[list[Pull], float]:
    """(what each of `times` workers pulled, the daemon's CPU in seconds for all of them)."""
    pulls = []
    target = work / "mirror"
    with Daemon(work / "rsyncd", update.new.parent) as daemon:
        for _ in range(times):
            if update.old.is_dir():
                shutil.copytree(update.old, target, symlinks=True)
            else:
                shutil.copyfile(update.old, target)
                os.utime(target, (1, 1))  # equal sizes and times would mean: not changed
            pulls.append(daemon.pull(update.new, target, [one for one in options if one]))
            assert _same(target, update.new), "rsync did not update"
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        sender_s = daemon.stop()
    return pulls, sender_s


def _serving_s(path: Path) -> float:
    """CPU of a thread that reads a file and sends it to all workers over loopback, in turn."""
    spent: list[float] = []

    def send(server: socket.socket) -> None:
        begun = time.thread_time()
        for _ in range(WORKERS):
            connection, _ = server.accept()
            with connection, path.open("rb") as file:
                while data := file.read(1024 * 1024):
                    connection.sendall(data)
        spent.append(time.thread_time() - begun)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=send, args=(server,))
        thread.start()
        for _ in range(WORKERS):
            with socket.create_connection(server.getsockname()) as client:
                while client.recv(1024 * 1024):
                    pass
        thread.join()
    return spent[0]


# --- what is updated ---------------------------------------------------------------------------


def _updates(here: Path, megabytes: int) -> Iterator[Update]:
    chance = random.Random(5)
    old, new = here / "customers.csv", here / "new.csv"
    rows = [_row(chance, number) for number in range(megabytes * 10_000)]
    few = max(1, len(rows) // 100)
    _write(old, rows)
    with _changed(rows, chance.sample(range(len(rows)), few), chance):
        _write(new, rows)
    yield Update("data set, 1 % of the rows changed in place, scattered", old, new)
    _write(new, [*(_row(chance, len(rows) + i) for i in range(few)), *rows])
    rows.clear()
    yield Update("data set, 1 % of the rows new at the front", old, new)
    code, changed = here / "code", here / "new-code"
    _code_folder(code)
    shutil.copytree(code, changed)
    victim = sorted(path for path in changed.rglob("*.py"))[500]
    lines = victim.read_bytes().splitlines(keepends=True)
    lines[len(lines) // 2 : len(lines) // 2] = [b"# one more line\n", b"ANSWER = 42\n"]
    victim.write_bytes(b"".join(lines))
    yield Update("code folder, 1,000 files, one changed", code, changed)


def _row(chance: random.Random, number: int) -> str:
    return (
        f"{number},customer {chance.getrandbits(40):x},{chance.randrange(99999) / 100},"
        f"2026-{chance.randrange(1, 13):02}-{chance.randrange(1, 29):02},"
        f"street {chance.randrange(1000)} {chance.getrandbits(64):x},"
        f"{chance.randrange(10000, 99999)},note {chance.getrandbits(48):x}\n"
    )


@contextmanager
def _changed(rows: list[str], where: list[int], chance: random.Random) -> Iterator[None]:
    before = [rows[number] for number in where]
    for number in where:
        rows[number] = _row(chance, number)
    try:
        yield
    finally:
        for number, row in zip(where, before, strict=True):
            rows[number] = row


def _write(path: Path, rows: list[str]) -> None:
    with path.open("w", encoding="ascii") as file:
        file.writelines(rows)


def _code_folder(target: Path) -> None:
    """1,000 real files: of Python's library and of what is installed beside it."""
    count = 0
    for number, name in enumerate(("stdlib", "purelib")):
        root = Path(sysconfig.get_path(name))
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if count == 1000 or path.is_symlink() or (number == 0 and "site-packages" in str(path)):
                continue
            place = target / name / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            count += 1
    assert count == 1000, f"only {count} files of code were found"


# --- helpers -----------------------------------------------------------------------------------


def _probe(step: str, *paths: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.deltas_probe", step, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return dict(json.loads(done.stdout))


def _same(one: Path, other: Path) -> bool:
    command = ["diff", "-rq", str(one), str(other)]
    return subprocess.run(command, capture_output=True).returncode == 0


def _size(count: float) -> str:
    return f"{count / MB:.3f} MB" if count >= MB else f"{count / 1000:.2f} kB"


def _cpu(one: dict[str, float], bare: dict[str, float]) -> str:
    return f"{one['cpu_s'] - bare['cpu_s']:.2f} s CPU"


def _peak(one: dict[str, float]) -> str:
    return f"{one['peak_mb']:.0f} MB"
