"""The grid that the desk benchmark runs on: a coordinator, one desk with a real X server and a real
agent, a guest under QEMU, and jobs that keep the guest's processor and memory busy.

Uses the tests' own desk and grid (`tests/vm`, `tests/acceptance`); `tests` must be on sys.path.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from acceptance.grid import Grid, Running
from acceptance.projects import write_job
from bench.desk_probe import Log, Person, guest_thread, until
from desktops import XServer, burner
from vm.desk import Desk
from vm.guest import Guest

MEMORY_MB = 1024
HELD_MB = 528
AWAY_S = 1.5
"""After so long without input the grid uses this desk."""
ORDERS_WITHIN_S = 40.0
RULES = """
idle = "{idle_s}s"
settle = "0s"
cpu_busy_share = 1.0
cpu_idle_share = 1.0
cpu_idle = "0s"
memory_free_mb = 0
saves_per_hour = 1000
save_delay = "{save_delay_s}s"
on_battery = true
"""
# Each record takes the same CPU time, and all of the memory is written to again and again. Random
# bytes, no two pages alike: nothing on the way to the disk can make them smaller. The colleague,
# who shares this PC with the guest and must not disturb the measurement, does it for nothing.
PROGRAM = """
import os
import time
import zlib

COLLEAGUE = os.path.isdir({folder!r})
BLOCK = 16 << 20
held = bytearray(0 if COLLEAGUE else {held_mb} << 20)
if not COLLEAGUE:
    block = os.urandom(BLOCK)
    for start in range(0, len(held), BLOCK):
        cut = 1 + (start // BLOCK) * 4099
        held[start:start + BLOCK] = block[cut:] + block[:cut]
place = 0

def record(row):
    global place
    until = time.process_time() + {cpu_s}
    while not COLLEAGUE and time.process_time() < until:
        place = (place + 65536) % len(held)
        held[place] ^= 255
        zlib.crc32(memoryview(held)[place:place + 65536])
    return {{"id": row["id"]}}
"""
JOB = """
name = "{name}"
python = "program:record"
[input]
path = "in.csv"
[output]
path = "out.csv"
[policy]
unit_seconds = {unit_s}
memory = "900MB"
"""


class LoadedDesk(Desk):
    """A desk with a person at a real X server instead of a scripted one. `bus` is the address of a
    system bus with a logind that lists no session, so that who uses this PC meanwhile, or that it
    has no logind, makes no difference."""

    def __init__(self, folder: Path, grid: Grid, guest: Guest, x: XServer, bus: str) -> None:
        super().__init__(folder, grid, guest, memory_mb=MEMORY_MB, rules=_rules(3600, 0))
        self.guest, self._folder = guest, folder
        self._env = {
            "DISPLAY": x.display, "XDG_SESSION_TYPE": "x11", "WAYLAND_DISPLAY": "",
            "DBUS_SESSION_BUS_ADDRESS": "", "DBUS_SYSTEM_BUS_ADDRESS": bus,
        }  # fmt: skip
        config = self.home / "agent.toml"
        text = config.read_text(encoding="utf-8").partition("[sensors]")[0]
        config.write_text(text.replace('"tcg"', '"auto"') + '[sensors]\nkind = "auto"\n', "utf-8")
        self.mouse = Person(x)
        self.log = Log(grid.folder / f"agent-{self.name}.log")

    def start(self) -> Running:
        name = f"agent-{self.name}"
        self.agent = self.grid.begin(name, "agent", "run", home=self.name, env=self._env)
        self.agent.wait_text("agent.started")
        return self.agent

    def rule(self, idle_s: float, save_delay_s: float) -> None:
        """Set the central rules, and wait until the agent follows them."""
        path = self._folder / "rules.toml"
        path.write_text(_rules(idle_s, save_delay_s), encoding="utf-8")
        self.grid.ok("policy", "--set", str(path))
        orders = self.home / "agent" / "orders.json"

        def followed() -> bool | None:
            with contextlib.suppress(OSError, ValueError):
                rules = json.loads(orders.read_text(encoding="utf-8")).get("rules", {})
                if (rules.get("idle_s"), rules.get("save_delay_s")) == (idle_s, save_delay_s):
                    return True
            self.mouse.move()  # a change makes the agent report, and a report brings orders
            return None

        until(followed, "the agent follows the new rules", ORDERS_WITHIN_S, 2 * AWAY_S)

    def pid(self) -> int:
        process = self.process()
        if process is None:
            raise RuntimeError("QEMU is not there")
        return process.pid

    def thread(self) -> Path:
        return guest_thread(self.pid())

    def close(self) -> None:
        self.mouse.close()
        super().close()


def _rules(idle_s: float, save_delay_s: float) -> str:
    return RULES.format(idle_s=idle_s, save_delay_s=save_delay_s)


def submit(grid: Grid, name: str, records: int, *, unit_s: float, cpu_s: float = 0.05) -> str:
    """A job of so many records of `cpu_s` each; its id."""
    text = PROGRAM.format(folder=str(grid.folder), held_mb=HELD_MB, cpu_s=cpu_s)
    rows = "id\n" + "".join(f"{number}\n" for number in range(records))
    job = JOB.format(name=name, unit_s=unit_s)
    return grid.submit(write_job(grid.folder / name, job, {"program.py": text, "in.csv": rows}))


@dataclass(frozen=True)
class Losses:
    """What one interruption cost, by the ledger."""

    given_back: int
    """Units that this worker had claimed and that somebody else did in the end."""
    begun: int
    """Those of them that it had begun: a worker does its units in the order of their claims and
    claims ahead, so of several the one claimed last was not begun."""
    records: int
    """In the units begun: at most so many were computed twice."""


def losses(grid: Grid, job_id: str, worker: str) -> Losses:
    """Leases of this worker on this job that no part of the output came from."""
    database = f"file:{grid.data / 'officegrid.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True)) as ledger:
        lost = ledger.execute(
            'select start, "end" from leases where job = ? and machine = ?'
            " and id not in (select lease_id from parts where job = ?) order by claimed_at, start",
            (job_id, worker, job_id),
        ).fetchall()
    begun = lost[:-1] if len(lost) > 1 else lost
    return Losses(len(lost), len(begun), sum(end - start for start, end in begun))


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many ordinary programs that each want a whole core."""
    started: list[subprocess.Popen[bytes]] = [burner() for _ in range(count)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def load() -> str:
    return "load average " + ", ".join(f"{one:.1f}" for one in os.getloadavg())
