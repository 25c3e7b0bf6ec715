"""The QEMU driver's verbs; `agent.drivers.base` says what each promises."""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.qemu import disk, saved
from officegrid.agent.drivers.qemu import process as processes
from officegrid.agent.drivers.qemu.acceleration import obstacle
from officegrid.agent.drivers.qemu.boot import Boot, Version, read_version
from officegrid.agent.drivers.qemu.files import Files, remove
from officegrid.agent.drivers.qemu.health import look_around
from officegrid.agent.drivers.qemu.monitor import Monitor, NoAnswer, NotThere, Refused
from officegrid.agent.drivers.qemu.options import parse_options
from officegrid.agent.drivers.qemu.priority import CpuCap, lift, lower
from officegrid.agent.drivers.qemu.status import Looker
from officegrid.core.vm import (
    Capabilities,
    DriverError,
    Health,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)

REPAIRS = frozenset({
    RepairStep.RETRY, RepairStep.EMERGENCY_STOP, RepairStep.DISCARD, RepairStep.REIMPORT,
})  # fmt: skip
ORDER_LIMIT_S = 5.0
QUIT_LIMIT_S = 2.0
QUITS_WITHIN_S = 5.0
ROOM_SPARE_MB = 64
_NEVER_RAN = frozenset({"prelaunch", "inmigrate", "preconfig"})


class QemuDriver:
    """One VM: one folder, and at most one QEMU process."""

    name = "qemu"

    def __init__(
        self, settings: VmSettings, find_obstacle: Callable[[str], str] = obstacle
    ) -> None:
        """Raises UsageError for wrong options."""
        self.settings = replace(settings, folder=settings.folder.absolute())
        self.options = parse_options(settings.options)
        self.files = Files(self.settings.folder)
        self._cap = CpuCap(self.settings)
        self._boot = Boot(self.settings, self.options, self.files, self._cap, find_obstacle)
        self._looker = Looker(self.settings.name, self.options, self.files)

    def capabilities(self) -> Capabilities:
        capped = not self._cap.obstacle()
        return Capabilities(
            saves=True, imports=True, cpu_cap=capped, repairs=REPAIRS, image_format="qcow2"
        )

    def detect(self) -> Health:
        return look_around(self.options, self._boot, self._cap)

    def state(self) -> VmStatus:
        return self._looker.status()

    # --- making and deleting

    def import_image(self) -> None:
        self._need_own_folder()
        if self._made() is None:
            with self._told():
                disk.make_overlay(
                    self.files, self.settings.name, self.settings.image, self.options.image_tool
                )

    def delete(self) -> None:
        self._end(search=True)
        if disk.belongs_to_another(self.files, self.settings.name):
            return
        remove(self.files.learnt)
        self._remove_files()

    def sweep(self, keep_name: str) -> list[str]:
        """See `drivers.base.Sweeper`: all in our folder is ours, a VM of another name too."""
        other = disk.belongs_to_another(self.files, keep_name)
        if not other:
            return []
        self._end(search=True)
        self._remove_files()
        return [f"The leftover VM {other!r} was removed from {self.files.folder}."]

    def _remove_files(self) -> None:
        remove(*self.files.everything())
        left = [path for path in self.files.everything() if path.exists()]
        if left:
            raise DriverError(
                Trouble.PERMISSION, f"{left[0]} cannot be removed.",
                "The system does not let us.", "Remove it by hand.",
            )  # fmt: skip

    # --- running

    def start(self, cancel: threading.Event) -> None:
        made = self._need_made()
        if self._already_up():
            return
        version = read_version(self.options.binary)
        self._looker.learn_from_wreck(self._boot.learnt)
        with self._told(VmState.STARTING):
            made = disk.verify_image(self.files, made)
            stamp = saved.Stamp.read(self.files)
            if stamp is None:
                self._boot.cold(version, cancel)
            else:
                self._boot.restore(stamp, made, version, cancel)

    def _already_up(self) -> bool:
        """Running, or made to run. A QEMU whose guest never ran is left over from an agent that
        died while it started: it is ended, and nothing is lost."""
        process = processes.find(self.files, search=True)
        if process is None:
            return False
        with self._monitor(process) as monitor:
            status = _status(monitor)
            if status not in _NEVER_RAN:
                if status != "running":
                    self._go(monitor, process)
                return True
        processes.kill(process, self.files)
        return False

    def pause(self) -> None:
        process = self._need_process()
        # First of all: a QEMU in SCHED_IDLE beside a busy program hears the order late.
        lift(process.pid)
        self._cap.suspend()
        with self._monitor(process) as monitor:
            monitor.call("stop", timeout_s=ORDER_LIMIT_S)

    def resume(self) -> None:
        process = self._need_process()
        with self._monitor(process) as monitor:
            if _status(monitor) != "running":
                self._go(monitor, process)

    def _go(self, monitor: Monitor, process: psutil.Process) -> None:
        lower(process.pid)
        self._cap.restore()
        self._looker.waits_from_now()
        monitor.call("cont", timeout_s=ORDER_LIMIT_S)
        saved.drop(self.files)  # of a restore during which the agent died: it has been used now

    # --- giving the memory back

    def save(self) -> None:
        if self.state().state is VmState.SAVED:
            return
        process = self._need_process()
        version = read_version(self.options.binary)
        made = self._need_made()
        running = processes.Running.read(self.files)
        if running is None or running.qemu_version != version.text:
            raise DriverError(
                Trouble.FAILED, "This VM cannot be saved.",
                "QEMU was replaced by another version while it ran." if running
                else "Nothing says how it was started.",
                "Stop it; the next start is a cold boot.",
            )  # fmt: skip
        self._need_room()
        with self._told(VmState.SAVING):
            self._write_state(process, version, self.options.save_timeout_s)
            self._stamp(made, running)

    def _need_room(self) -> None:
        needed_mb = self.settings.memory_mb + ROOM_SPARE_MB
        free_mb = shutil.disk_usage(self.files.folder).free // 2**20
        if free_mb < needed_mb:
            raise DriverError(
                Trouble.DISK_FULL,
                f"There is no room to save the VM in {self.files.folder}.",
                f"{free_mb} MB are free; {needed_mb} MB may be needed.",
                "Free some space on this disk, or give the VM less memory.",
            )

    def _write_state(self, process: psutil.Process, version: Version, limit_s: float) -> None:
        """From running or paused to: the memory in its file, the process gone."""
        lift(process.pid)
        self._cap.suspend()
        try:
            with self._monitor(process) as monitor:
                if _status(monitor) == "postmigrate":
                    # An agent died between its save and the end of QEMU, which refuses to save
                    # twice in a row.
                    monitor.call("cont", timeout_s=ORDER_LIMIT_S)
                monitor.call("stop", timeout_s=ORDER_LIMIT_S)
                saved.write_memory(monitor, self.files.memory, version.numbers, limit_s)
                with contextlib.suppress(NotThere):
                    monitor.call("quit", timeout_s=ORDER_LIMIT_S)
            if not processes.wait_gone(process, QUITS_WITHIN_S):
                processes.kill(process, self.files)
        except BaseException:
            remove(self.files.memory)
            raise

    def _stamp(self, made: disk.Made, running: processes.Running) -> None:
        """The process is gone; now make sure of what it left, and say so."""
        try:
            crc32, length = saved.check(self.files.memory)
            disk.sync_file(self.files.memory)
            disk.sync_file(self.files.overlay)
            saved.Stamp(
                format=saved.FORMAT,
                qemu_version=running.qemu_version,
                digest=running.digest,
                accelerator=running.accelerator,
                memory_mb=self.settings.memory_mb,
                bytes=length,
                crc32=crc32,
                image_sha256=made.sha256,
                overlay=disk.fingerprint(self.files.overlay),
                ready=self._looker.is_ready(),
                saved_at=time.time(),
            ).write(self.files)
        except BaseException:
            saved.drop(self.files)
            raise
        finally:
            self._clear()

    def stop(self) -> None:
        with self._told(VmState.STOPPING):
            self._end(search=True)
            self.discard()

    def discard(self) -> None:
        if not disk.belongs_to_another(self.files, self.settings.name):
            saved.drop(self.files)

    def _end(self, *, search: bool = False) -> None:
        """The process gone, in good order if it listens, else by force."""
        process = processes.find(self.files, search=search)
        if process is not None:
            lift(process.pid)
            self._cap.suspend()
            with contextlib.suppress(NoAnswer, NotThere, Refused):
                with Monitor(self.files.control, QUIT_LIMIT_S) as monitor:
                    monitor.call("quit", timeout_s=QUIT_LIMIT_S)
                processes.wait_gone(process, QUIT_LIMIT_S)
            processes.kill(process, self.files)
        self._clear()

    def _clear(self) -> None:
        files = self.files
        remove(files.pid, files.control, files.look, files.running)
        self._cap.remove()

    # --- repair

    def repair(self, step: RepairStep) -> None:
        if step not in REPAIRS:
            raise DriverError(
                Trouble.UNSUPPORTED, f"QEMU knows no repair {step!s}.", "It has no service."
            )
        if step is RepairStep.DISCARD:
            self.discard()
        elif step is RepairStep.REIMPORT:
            self._end(search=True)
            self._remove_files()
            self.import_image()
        elif step is RepairStep.EMERGENCY_STOP or self._looker.overdue():
            self._emergency_stop()

    def _emergency_stop(self) -> None:
        """By its pid, at once. A guest that never came up tells something about the machine."""
        reason = self._looker.overdue()
        running = processes.Running.read(self.files)
        if reason and running is not None:
            self._boot.learnt.remember(running.accelerator, running.qemu_version, reason)
        process = processes.find(self.files, search=True)
        if process is not None:
            processes.kill(process, self.files)
        self._clear()

    # --- parts

    def _made(self) -> disk.Made | None:
        return disk.Made.read(self.files, self.settings.name)

    def _need_own_folder(self) -> None:
        """The files of a VM of another name are not used. Its process, in our folder, is ours to
        end: a VM that was renamed in the settings must not run on for ever."""
        if other := disk.belongs_to_another(self.files, self.settings.name):
            raise DriverError(
                Trouble.NAME_TAKEN,
                f"The folder {self.settings.folder} belongs to another VM, {other!r}.",
                f"This one is called {self.settings.name!r}.",
                "Give each VM a folder of its own, or remove the other one first; after a "
                "rename in agent.toml, take the old name again.",
            )

    def _need_made(self) -> disk.Made:
        self._need_own_folder()
        made = self._made()
        if made is None:
            raise DriverError(
                Trouble.GONE, f"There is no VM in {self.files.folder}.",
                "It was never imported, or its files were deleted.", "Import the image.",
            )  # fmt: skip
        return made

    def _need_process(self) -> psutil.Process:
        process = processes.find(self.files)
        if process is None:
            self._need_made()
            raise DriverError(
                Trouble.FAILED, "The VM is not running.", processes.last_words(self.files)
                or "There is no QEMU process.", "Start it.",
            )  # fmt: skip
        return process

    @contextlib.contextmanager
    def _monitor(self, process: psutil.Process) -> Iterator[Monitor]:
        """Raises DriverError for all that can go wrong with QEMU's answers."""
        try:
            with Monitor(self.files.control, ORDER_LIMIT_S) as monitor:
                yield monitor
        except NoAnswer as error:
            raise DriverError(
                Trouble.TIMEOUT, f"QEMU (process {process.pid}) does not answer.", str(error),
                "The agent ends it if this goes on.",
            ) from None  # fmt: skip
        except NotThere as error:
            gone = not processes.is_alive(process)
            words = processes.last_words(self.files)
            raise DriverError(
                Trouble.FAILED if gone else Trouble.TIMEOUT,
                "QEMU has ended." if gone else f"QEMU (process {process.pid}) cannot be reached.",
                words or str(error),
                "Start the VM again.",
            ) from None
        except Refused as error:
            full = "No space left" in str(error)
            raise DriverError(
                Trouble.DISK_FULL if full else Trouble.FAILED,
                "The disk is full." if full else "QEMU refused.",
                str(error),
                f"Free some space on the disk of {self.files.folder}." if full else "",
            ) from None

    @contextlib.contextmanager
    def _told(self, doing: VmState | None = None) -> Iterator[None]:
        """While a verb is at work `state` says so; what the system refuses becomes DriverError."""
        self._looker.doing = doing
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            denied = isinstance(error, PermissionError)
            trouble = Trouble.DISK_FULL if full else Trouble.FAILED
            raise DriverError(
                Trouble.PERMISSION if denied else trouble,
                f"The files of the VM in {self.files.folder} cannot be used.",
                error.strerror or str(error),
                "Free some space on this disk." if full else "Check the rights of that folder.",
            ) from None
        finally:
            self._looker.doing = None


def _status(monitor: Monitor) -> str:
    return str(monitor.call("query-status", timeout_s=ORDER_LIMIT_S)["status"])
