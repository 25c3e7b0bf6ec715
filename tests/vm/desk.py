"""A whole desktop for tests: the real agent, a scripted person, and the real guest under QEMU.

desk = Desk(folder, grid, guest); desk.start(); desk.away(); … ; desk.here()
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from acceptance.grid import Grid, Running, wait_for
from officegrid.agent.drivers.qemu.files import Files
from officegrid.wire.jobs import MachineView
from vm.guest import HOST, Guest

UP_WITHIN_S = 150.0
"""A boot under emulation takes ten seconds on a quiet machine."""
RULES = """
idle = "1h"
settle = "0s"
cpu_busy_share = 1.0
cpu_idle_share = 1.0
cpu_idle = "0s"
memory_free_mb = 0
saves_per_hour = 1000
on_battery = true
"""
"""Central rules under which only a locked screen means away, and nothing else counts."""


class Person:
    """Somebody at a desk: keeps the presence file of the agent's file sensor fresh."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locked = False
        self._touched_s = time.monotonic()
        self._changed = threading.Event()
        self._gone = False
        self._write()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
        self._thread.start()

    def touch(self) -> None:
        """Press a key; now."""
        self._locked, self._touched_s = False, time.monotonic()
        self._write()

    def lock(self) -> None:
        """Lock the screen and leave."""
        self._locked, self._touched_s = True, self._touched_s - 60
        self._write()

    def close(self) -> None:
        self._gone = True
        self._changed.set()
        self._thread.join()

    def _keep_fresh(self) -> None:
        while not self._gone:
            self._changed.wait(0.5)
            self._write()

    def _write(self) -> None:
        idle_s = round(time.monotonic() - self._touched_s, 3)
        reading = {"at": time.time(), "idle_s": idle_s, "locked": self._locked}
        draft = self.path.with_suffix(f".{threading.get_ident()}")
        draft.write_text(json.dumps(reading), encoding="utf-8")
        os.replace(draft, self.path)


class Desk:
    """One PC of the grid. `close` ends the agent and everything that it started."""

    def __init__(
        self, folder: Path, grid: Grid, guest: Guest, *, name: str = "pc-1", memory_mb: int = 384,
        rules: str = RULES,
    ) -> None:  # fmt: skip
        self.grid, self.name = grid, name
        self.home = grid.join(name, "agent")
        self.person = Person(self.home / "presence.json")
        self.agent: Running | None = None
        self.files = Files(self.home / "agent" / "vm")
        options = {**guest.options, "accelerator": "tcg", "code_cache_mb": 64}
        lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
        (self.home / "agent.toml").write_text(
            "\n".join([
                "[vm]", 'driver = "qemu"', f'image = "{guest.image}"', f"memory_mb = {memory_mb}",
                "cpus = 1", f'coordinator_url = "https://{HOST}:{grid.port}"',
                "[vm.options]", *lines,
                "[sensors]", 'kind = "file"', f'file = "{self.person.path}"',
            ]),
            encoding="utf-8",
        )  # fmt: skip
        (folder / "rules.toml").write_text(rules, encoding="utf-8")
        grid.ok("policy", "--set", str(folder / "rules.toml"))

    # --- the agent

    def start(self) -> Running:
        self.agent = self.grid.begin(f"agent-{self.name}", "agent", "run", home=self.name)
        self.agent.wait_text("agent.started")
        return self.agent

    def kill_agent(self) -> None:
        """`kill -9`; the VM is not asked."""
        assert self.agent is not None
        self.agent.kill()

    # --- the VM

    def process(self) -> psutil.Process | None:
        """QEMU, if it lives."""
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int(self.files.pid.read_text()))
            if process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def wait_up(self, within_s: float = UP_WITHIN_S) -> psutil.Process:
        """Until the VM runs, as the agent reports it."""

        def up() -> psutil.Process | None:
            return self.process() if self.vm() == "running" else None

        return wait_for(up, f"the VM of {self.name} runs", within_s)

    def wait_gone(self, within_s: float = 30.0) -> None:
        wait_for(lambda: self.process() is None, f"the VM of {self.name} has no process", within_s)

    def wait_saved(self, within_s: float = 30.0) -> None:
        self.wait_gone(within_s)
        wait_for(lambda: self.vm() == "saved", f"{self.name} tells that its VM is saved", within_s)

    def boots(self) -> int:
        """How often the guest was started cold, by the logs of all agents there were."""
        log = self.grid.folder / f"agent-{self.name}.log"
        return log.read_text("utf-8", "replace").count("desk.running text=boot")

    # --- what the coordinator says

    def view(self) -> MachineView:
        return self.grid.machine(self.name)

    def vm(self) -> str:
        desk = self.view().desk
        return desk.status.vm if desk is not None and desk.status is not None else ""

    def worker(self) -> MachineView | None:
        views = self.grid.connection().call("GET", "/v1/machines", reply=_machines()).machines
        mine = [view for view in views if view.host == self.view().id]
        assert len(mine) <= 1, mine
        return mine[0] if mine else None

    def story(self) -> list[str]:
        return self.grid.story(self.name)

    # --- the end

    def close(self) -> None:
        self.person.close()
        if self.agent is not None and self.agent.running:
            self.agent.kill()
        if (process := self.process()) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(10)


def _machines() -> Any:
    from officegrid.wire.jobs import MachineList

    return MachineList
