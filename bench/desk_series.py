"""The series of measurements on a `LoadedDesk`, in the order in which they are taken."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import psutil

from bench.desk_grid import (
    AWAY_S,
    HELD_MB,
    LoadedDesk,
    Losses,
    busy_programs,
    load,
    losses,
    submit,
)
from bench.desk_probe import CpuWatch, Typing, cpu_s, spread, until
from bench.report import Figure, heading, show
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.qemu.driver import QemuDriver

WARM_UP_S = 5.0
WAIT_FOR_S = 60.0
RUN_FOR_S = 10.0
PAUSES = 20
SAVES = {"quiet": 5, "busy": 3}
BARE_STOPS = 10
INTERRUPTIONS = 3
NEVER_S = 3600.0
AFTER_S = 0.1
"""The guest's CPU time is watched for so long after the agent said that the VM is paused."""
YIELD_WITHIN_S = 30.0
START_WITHIN_S = 120.0
BOOT_WITHIN_S = 240.0
COLD_UNIT_S = 2.0


@dataclass
class Series:
    """Seconds, one of each yield."""

    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    saved_mb: list[float] = field(default_factory=list)
    resume: list[float] = field(default_factory=list)
    first_unit: list[float] = field(default_factory=list)
    resolution: list[float] = field(default_factory=list)


class Bench:
    """`run` takes the measurements and prints them as they come."""

    def __init__(self, desk: LoadedDesk) -> None:
        self.desk, self.grid, self.log = desk, desk.grid, desk.log
        self.random = random.Random(7)
        self.job = ""
        self.cold_s = 0.0
        self.cpu_back: dict[str, list[float]] = {}

    def run(self) -> None:
        self._waiting()
        self._cold_boot()
        self._running()
        self.desk.rule(AWAY_S, NEVER_S)
        self._pauses("quiet", "On a quiet desk")
        with busy_programs(2):
            self._pauses("busy", "Beside two busy programs")
        self.desk.rule(AWAY_S, 0)
        self._saves("quiet", "On a quiet desk")
        with busy_programs(2):
            self._saves("busy", "Beside two busy programs")
        self._bare()
        self._losses()

    # --- the agent's own costs

    def _waiting(self) -> None:
        agent = self.desk.start()
        time.sleep(WARM_UP_S)
        share = _cpu_share(agent.pid, WAIT_FOR_S)
        memory = psutil.Process(agent.pid).memory_full_info()
        heading(f"The agent while it waits, X11 sensor, {WAIT_FOR_S:.0f} s; {load()}")
        show(
            Figure("agent CPU", f"{100 * share:.2f} % of a core", "must < 0.2 %"),
            Figure("agent memory", f"{memory.rss / 1e6:.0f} MB resident, {memory.pss / 1e6:.0f} MB "
                                   "its share (PSS)", "must < 60 MB"),
        )  # fmt: skip

    def _running(self) -> None:
        assert self.desk.agent is not None
        pid, vm = self.desk.agent.pid, self.desk.pid()
        vm_before_s, began_s = cpu_s(vm), time.monotonic()
        share = _cpu_share(pid, RUN_FOR_S)
        vm_share = (cpu_s(vm) - vm_before_s) / (time.monotonic() - began_s)
        memory = psutil.Process(pid).memory_info().rss / 1e6
        heading(f"The agent while the VM runs, {RUN_FOR_S:.0f} s; {load()}")
        show(
            Figure("agent CPU", f"{100 * share:.2f} % of a core"),
            Figure("VM's CPU", f"{100 * vm_share:.0f} % of a core"),
            Figure("agent memory", f"{memory:.0f} MB resident", "must < 60 MB"),
        )  # fmt: skip

    # --- starting

    def _cold_boot(self) -> None:
        self.job = submit(self.grid, "load", 100_000, unit_s=COLD_UNIT_S)
        mark = self.log.mark()
        self.desk.rule(AWAY_S, NEVER_S)
        began_s = self.log.wait(mark, "verb=start", START_WITHIN_S)
        ready_s = until(self._guest_ready, "the guest says that it is up", BOOT_WITHIN_S)
        unit_s = self._first_unit(0, BOOT_WITHIN_S)
        self.cold_s = unit_s - began_s
        heading(f"Cold boot, joining included; {load()}")
        show(
            Figure("start -> ready", f"{ready_s - began_s:.1f} s"),
            Figure("start -> first unit", f"{self.cold_s:.1f} s"),
        )

    def _guest_ready(self) -> float | None:
        ready = self.desk.files.ready
        return time.monotonic() if ready.exists() and ready.stat().st_size else None

    def _first_unit(self, before: int, within_s: float) -> float:
        def committed() -> float | None:
            return time.monotonic() if self.grid.job(self.job).done > before else None

        return until(committed, "a unit is committed", within_s, 0.05)

    # --- giving back

    def _yield(self, series: Series) -> int:
        """Move the pointer; the mark in the log before it. Only where no save follows: that makes
        QEMU's threads work once more, to get out of the way."""
        mark, thread = self.log.mark(), self.desk.thread()
        with CpuWatch(thread) as watch:
            time.sleep(0.1)
            input_s = self.desk.mouse.move()
            self.log.wait(mark, "verb_done verb=pause", YIELD_WITHIN_S)
            time.sleep(AFTER_S)
        series.cpu.append(max(0.0, watch.released_s() - input_s))
        series.resolution.append(watch.resolution_s())
        return mark

    def _pauses(self, name: str, title: str) -> None:
        series = Series()
        self._wait_running(0)
        for _ in range(PAUSES):
            self._wait_a_little()
            mark = self._yield(series)
            self._wait_running(mark, "verb=resume")
        self.cpu_back[name] = series.cpu
        heading(f"{title}: input -> CPU released; {load()}")
        show(
            Figure("CPU released", spread(series.cpu), "aim <= 250 ms, must <= 1000 ms"),
            Figure("resolution", f"{1000 * statistics.median(series.resolution):.0f} ms"),
        )

    def _saves(self, name: str, title: str) -> None:
        series = Series()
        for _ in range(SAVES[name]):
            self._wait_running(0)
            self._wait_a_little()
            pid = self.desk.pid()
            mark, input_s = self.log.mark(), self.desk.mouse.move()
            gone_s = until(partial(_gone_s, pid), "QEMU is gone", YIELD_WITHIN_S)
            series.memory.append(gone_s - input_s)
            self.log.wait(mark, "verb_done verb=save", YIELD_WITHIN_S)
            series.saved_mb.append(self.desk.files.memory.stat().st_size / 1e6)
            before = self.grid.job(self.job).done
            began_s = self.log.wait(mark, "verb=start", START_WITHIN_S)
            series.resume.append(self._wait_running(mark, "verb=start") - began_s)
            series.first_unit.append(self._first_unit(before, BOOT_WITHIN_S) - began_s)
        heading(f"{title}: input -> memory released, and back from the saved state; {load()}")
        show(
            Figure("memory released", spread(series.memory, "s"), "aim <= 5 s, must <= 10 s"),
            Figure("saved memory", f"{statistics.median(series.saved_mb):.0f} MB on disk; the job "
                                   f"holds {HELD_MB} MiB of random bytes"),
            Figure("start -> running", spread(series.resume, "s")),
            Figure("start -> first unit", spread(series.first_unit, "s")),
        )  # fmt: skip
        if name == "quiet":
            ratio = statistics.median(series.first_unit) / self.cold_s
            show(Figure("saved / cold", f"{ratio:.2f} of a cold boot's time to the first unit"))

    def _wait_running(self, mark: int, verb: str = "") -> float:
        """Until the VM runs; with a verb, the second at which that verb had ended."""
        if verb:
            return self.log.wait(mark, f"verb_done {verb}", START_WITHIN_S)
        until(lambda: self.desk.vm() == "running" or None, "the VM runs", START_WITHIN_S, 0.1)
        return time.monotonic()

    def _wait_a_little(self) -> None:
        """Not always at the same moment of the agent's and the guest's own rhythms."""
        time.sleep(0.3 + 0.4 * self.random.random())

    # --- the baseline: without an agent

    def _bare(self) -> None:
        self._wait_running(0)
        self.desk.kill_agent()
        settings = VmSettings(
            "GridMachine", self.desk.files.folder, self.desk.guest.image, 1024, 1, 100,
            options=self.desk.guest.options,
        )  # fmt: skip
        driver, pid = QemuDriver(settings), self.desk.pid()

        def stop_process() -> None:
            os.kill(pid, signal.SIGSTOP)

        def continue_process() -> None:
            os.kill(pid, signal.SIGCONT)

        for name, title, programs in (("quiet", "quiet desk", 0), ("busy", "busy desk", 2)):
            with busy_programs(programs):
                signals = self._stops(stop_process, continue_process)
                pauses = self._stops(driver.pause, driver.resume)
            heading(f"Baseline, {title}: order -> CPU released, without an agent; {load()}")
            ours = statistics.median(self.cpu_back[name])
            show(
                Figure("SIGSTOP", spread(signals)),
                Figure("driver's pause (QMP)", spread(pauses)),
                Figure("agent / QMP", _ratio(ours, pauses) + " at p50"),
                Figure("agent / SIGSTOP", _ratio(ours, signals) + " at p50"),
            )

    def _stops(self, stop: Callable[[], None], go_on: Callable[[], None]) -> list[float]:
        found: list[float] = []
        thread = self.desk.thread()
        for _ in range(BARE_STOPS):
            self._wait_a_little()
            with CpuWatch(thread) as watch:
                time.sleep(0.1)
                began_s = time.monotonic()
                stop()
                time.sleep(AFTER_S)
            go_on()
            found.append(max(0.0, watch.released_s() - began_s))
        return found

    # --- work lost

    def _losses(self) -> None:
        self.grid.ok("cancel", self.job)
        self.desk.start()
        self.desk.rule(AWAY_S, NEVER_S)
        worker = self.desk.worker()
        assert worker is not None
        self.grid.join("colleague", "worker")
        found = [self._interrupt(number, worker.id) for number in range(INTERRUPTIONS)]
        heading(f"Work lost, {len(found)} interruptions in the middle of a unit; {load()}")
        count = len(found)
        show(
            Figure("units lost", f"{sum(one.begun for one in found) / count:.2f} an interruption, "
                   f"{sum(one.records for one in found) / count:.0f} records", "must <= 1"),
            Figure("units given back", f"{sum(one.given_back for one in found) / count:.2f} an "
                   "interruption, those included that were not begun"),
        )  # fmt: skip

    def _interrupt(self, number: int, worker: str) -> Losses:
        """A job of its own: the desk begins it, is interrupted, and a colleague does the rest."""
        self._wait_running(0)
        job_id = submit(self.grid, f"part-{number}", 400, unit_s=2.0)
        until(
            lambda: ((view := self.grid.job(job_id)).done and view.leased) or None,
            "the desk works on the job", START_WITHIN_S, 0.05,
        )  # fmt: skip
        time.sleep(self.random.uniform(0.5, 1.5))
        mark = self.log.mark()
        self.desk.mouse.move()
        with Typing(self.desk.mouse):
            self.log.wait(mark, "verb_done verb=pause", YIELD_WITHIN_S)
            until(
                lambda: self.grid.job(job_id).leased == 0 or None, "its units are free",
                YIELD_WITHIN_S, 0.05,
            )  # fmt: skip
            self.grid.ok("worker", "--drain", home="colleague", within_s=START_WITHIN_S)
            self.grid.wait_job(job_id)
        return losses(self.grid, job_id, worker)


def _cpu_share(pid: int, seconds: float) -> float:
    before_s, began_s = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(pid) - before_s) / (time.monotonic() - began_s)


def _gone_s(pid: int) -> float | None:
    """Now, if the process holds no memory any more."""
    try:
        gone = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        gone = True
    return time.monotonic() if gone else None


def _ratio(ours_s: float, theirs_s: list[float]) -> str:
    return f"{ours_s / max(0.001, statistics.median(theirs_s)):.0f} x"
