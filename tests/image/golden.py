"""A golden guest in a test: a VM made from the real image, a coordinator, and looks inside.

Nobody can log in to a golden guest. What a test wants to know of its inside it asks like any
developer would: by a job whose program prints it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acceptance.grid import Grid, wait_for
from acceptance.projects import write_job
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.qemu.driver import QemuDriver
from officegrid.agent.seed import Seed, write_seed
from vm.guest import HOST

BOOTS_WITHIN_S = 240.0
"""A whole system under emulation, on a busy machine."""
NEVER = threading.Event()
MEMORY_MB = 1024
FLIGHTS = 3000


@dataclass
class Golden:
    """One VM over the image."""

    name: str
    grid: Grid
    settings: VmSettings
    driver: QemuDriver = field(init=False)

    def __post_init__(self) -> None:
        self.driver = QemuDriver(self.settings)

    @classmethod
    def make(
        cls, name: str, folder: Path, grid: Grid, image: Path, told: Mapping[str, Any] | None = None
    ) -> Golden:
        """`told` are the settings in its seed. The VM is made, not started."""
        place = folder / name
        place.mkdir(mode=0o700)
        code = grid.code("worker")
        write_iso(place / "seed.iso", f"iid-{name}", name, grid, code, told)
        settings = VmSettings(
            name, place, image, MEMORY_MB, 1, seed_iso=place / "seed.iso",
            options={"accelerator": "tcg", "code_cache_mb": 128},
        )  # fmt: skip
        made = cls(name, grid, settings)
        made.driver.import_image()
        return made

    def copy(self, name: str, folder: Path) -> Golden:
        """What somebody gets who copies this PC's whole VM folder to another PC and starts it
        there: the same disk, with all that it knows, and the seed disk with its used-up code."""
        place = folder / name
        shutil.copytree(self.settings.folder, place, ignore=shutil.ignore_patterns("*.sock"))
        settings = VmSettings(
            self.settings.name, place, self.settings.image, MEMORY_MB, 1,
            seed_iso=place / "seed.iso", options=dict(self.settings.options),
        )  # fmt: skip
        return Golden(name, self.grid, settings)

    def start(self) -> None:
        self.driver.start(NEVER)

    def console(self) -> str:
        try:
            return self.driver.files.console.read_text("utf-8", "replace")
        except OSError:
            return ""

    def says(self, words: str, within_s: float = BOOTS_WITHIN_S) -> None:
        wait_for(lambda: words in self.console(), f"{self.name} says {words!r}", within_s)

    def committed_s(self) -> list[float]:
        """When units were committed, in seconds of the guest's uptime."""
        found = re.findall(r"^\[ *([0-9.]+)\].* worker\.committed ", self.console(), re.MULTILINE)
        return [float(seconds) for seconds in found]

    def close(self) -> None:
        print(f"--- {self.name}\n{self.console()[-4000:]}")  # shown when the test fails
        self.driver.delete()


def write_iso(
    path: Path, instance_id: str, name: str, grid: Grid, code: str | None,
    told: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """A seed disk as an agent writes it."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"https://{HOST}:{grid.port}"
        seed = Seed(instance_id, name, url, code, dict(told or {}))
        write_seed(Path(folder) / "seed", path, seed)


def airports_script(folder: Path, flights: int) -> tuple[Path, Path]:
    """(script for the image, folder of the job): the example, with so many real flights."""
    example = Path(__file__).resolve().parents[2] / "examples" / "php-mariadb"
    work = folder / "php-mariadb"
    shutil.copytree(example, work)
    subprocess.run(
        [sys.executable, str(work / "make_input.py"), str(flights)], check=True, timeout=120
    )
    return work / "load-airports.sh", work


KILLER = """
import os, pathlib, signal, time

def record(row):
    marker = pathlib.Path("/var/lib/officegrid/crashed-once")
    if row["id"] == "3" and not marker.exists():
        marker.touch()
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                words = pathlib.Path("/proc", name, "cmdline").read_bytes().split(b"\\0")
            except OSError:
                continue
            if b"officegrid" in words and b"worker" in words:
                os.kill(int(name), signal.SIGKILL)
        time.sleep(60)
    return row
"""


def survives_a_crash_of_its_worker(grid: Grid, tmp_path: Path) -> None:
    """The supervisor starts it again at once, and the unit that died with it is done again."""
    rows = "id\n" + "".join(f"{number}\n" for number in range(20))
    job_file = write_job(
        tmp_path / "killer",
        """
        name = "killer"
        python = "program:record"
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        """,
        {"program.py": KILLER, "in.csv": rows},
    )
    job = grid.submit(job_file)
    grid.wait_job(job, within_s=BOOTS_WITHIN_S)
    assert grid.output(job, tmp_path / "killer.csv").decode().split() == rows.split()
    assert grid.quarantine(job) == {}


def workers_of(grid: Grid) -> list[dict[str, object]]:
    found = [machine for machine in grid.read("machines") if machine["role"] == "worker"]
    return sorted(found, key=lambda machine: float(machine["created_at"]))
