"""Bring a VM to the point where its processors run: a cold boot, or on from the saved state.

QEMU always starts with the guest halted (`-S`), so that until the very last command nothing the
guest could notice has happened, and a start can be cancelled or repeated without loss.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.command import CommandMissing, CommandProblem, run
from officegrid.agent.drivers.qemu import process as processes
from officegrid.agent.drivers.qemu import saved
from officegrid.agent.drivers.qemu.acceleration import Accelerator, Learnt, choose, obstacle
from officegrid.agent.drivers.qemu.arguments import command_line, digest
from officegrid.agent.drivers.qemu.disk import Made, fingerprint
from officegrid.agent.drivers.qemu.files import Files, remove, trim
from officegrid.agent.drivers.qemu.monitor import Monitor, NoAnswer, NotThere, Refused
from officegrid.agent.drivers.qemu.options import QemuOptions
from officegrid.agent.drivers.qemu.priority import CpuCap, modest
from officegrid.core.vm import DriverError, Trouble

COMES_UP_WITHIN_S = 60.0
CALL_LIMIT_S = 10.0
VERSION_LIMIT_S = 10.0
_POLL_S = 0.01
_KILLED = (-9, -15)
"""Exit codes of what SIGKILL and SIGTERM end."""
_HARDWARE_WORDS = re.compile(r"kvm|hvf|\bMSR\b|hypervisor", re.IGNORECASE)
# What QEMU says on its way out, and what it means. Source: the messages of QEMU 7.2.
_REASONS: tuple[tuple[str, Trouble, str], ...] = (
    ("Failed to get", Trouble.LOCKED, "Another process uses the VM's disk; end it."),
    ("cannot set up guest memory", Trouble.MEMORY, "Give the VM less memory (memory_mb)."),
    ("Cannot allocate memory", Trouble.MEMORY, "Give the VM less memory (memory_mb)."),
    ("No space left", Trouble.DISK_FULL, "Free some space on this disk."),
    ("/dev/net/tun", Trouble.PERMISSION, "Let the agent's user use the tap; see docs/network.md."),
    ("Permission denied", Trouble.PERMISSION, "Let the agent's user use what is named above."),
    ("Could not open", Trouble.IMAGE, "Import the image again."),
)


@dataclass(frozen=True, slots=True)
class Version:
    """`text` is QEMU's first line, compared as a whole; `numbers` decide what it can do."""

    text: str
    numbers: tuple[int, ...]


def read_version(binary: str) -> Version:
    """Ask `qemu-system-x86_64 --version`. Raises DriverError MISSING, TIMEOUT, FAILED."""
    try:
        asked = run([binary, "--version"], timeout_s=VERSION_LIMIT_S)
    except CommandMissing as error:
        raise DriverError(
            Trouble.MISSING, "QEMU is not installed.", str(error),
            "Install it (Debian: apt-get install qemu-system-x86 qemu-utils).",
        ) from None  # fmt: skip
    except CommandProblem as error:
        raise DriverError(Trouble.TIMEOUT, "QEMU does not tell its version.", str(error)) from None
    line = asked.stdout.partition("\n")[0].strip()
    found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", line)
    if asked.exit_code or not found:
        why = (asked.stderr or line).strip() or f"Exit code {asked.exit_code}."
        raise DriverError(Trouble.FAILED, f"{binary} is not a QEMU that works.", why)
    return Version(line, tuple(int(part) for part in found.groups() if part))


class _AcceleratorFailed(Exception):  # noqa: N818
    """QEMU ended because of its accelerator: another one may do."""


class Boot:
    """Starts one VM. All methods raise DriverError only."""

    def __init__(
        self, settings: VmSettings, options: QemuOptions, files: Files, cap: CpuCap,
        find_obstacle: Callable[[str], str] = obstacle,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._options = options
        self._files = files
        self._cap = cap
        self._find_obstacle = find_obstacle
        self.learnt = Learnt(files.learnt)

    def accelerator(self, version: Version) -> Accelerator:
        """Raises NO_VIRTUALIZATION when the settings ask for one that does not work here."""
        return choose(
            self._options.accelerator, version.text, self.learnt, find_obstacle=self._find_obstacle
        )

    def cold(self, version: Version, cancel: threading.Event) -> None:
        """Boot from the disk. With `auto`, hardware virtualisation that QEMU itself cannot use
        is given up at once and remembered."""
        self._need_margin()
        self.need_tap()
        saved.drop(self._files)
        remove(self._files.ready, self._files.console)
        accelerator = self.accelerator(version)
        try:
            self._cold(accelerator, version, cancel)
        except _AcceleratorFailed as error:
            if self._options.accelerator != "auto":
                raise DriverError(
                    Trouble.NO_VIRTUALIZATION,
                    f"QEMU cannot use {accelerator.name} on this machine.",
                    str(error),
                    'Set accelerator = "auto" or "tcg".',
                ) from None
            self.learnt.remember(accelerator.name, version.text, f"QEMU said: {error}")
            self._cold(self.accelerator(version), version, cancel)

    def _cold(self, accelerator: Accelerator, version: Version, cancel: threading.Event) -> None:
        with self._up(accelerator, version, cancel, restoring=False) as monitor:
            self._run(monitor)

    def restore(
        self, stamp: saved.Stamp, made: Made, version: Version, cancel: threading.Event
    ) -> None:
        """Go on from the saved state, which is dropped once the guest runs. Raises SAVED_STATE."""
        self._check_fits(stamp, made, version)
        self._need_margin()
        self.need_tap()
        trim(self._files.console)
        accelerator = Accelerator(stamp.accelerator, "As when its state was saved.")
        try:
            with self._up(accelerator, version, cancel, restoring=True) as monitor:
                try:
                    saved.read_memory(
                        monitor, self._files.memory, version.numbers, stamp,
                        lambda: self._unless_cancelled(cancel),
                    )  # fmt: skip
                except Refused as error:
                    raise saved.unusable(f"QEMU does not take it: {error}") from None
                self._unless_cancelled(cancel)
                self._run(monitor)
        except _AcceleratorFailed as error:
            raise saved.unusable(f"QEMU cannot use {stamp.accelerator} now: {error}") from None
        saved.drop(self._files)

    def _check_fits(self, stamp: saved.Stamp, made: Made, version: Version) -> None:
        if stamp.qemu_version != version.text:
            raise saved.unusable(f"It was made by {stamp.qemu_version}; this is {version.text}.")
        if stamp.digest != digest(self._settings, self._options, stamp.accelerator):
            raise saved.unusable("The VM's settings have changed since it was saved.")
        if stamp.accelerator != "tcg" and (reason := self._find_obstacle(stamp.accelerator)):
            raise saved.unusable(f"It needs {stamp.accelerator}. {reason}")
        if stamp.image_sha256 != made.sha256:
            raise saved.unusable("It belongs to another image.")
        try:
            size = self._files.memory.stat().st_size
            overlay = fingerprint(self._files.overlay)
        except OSError as error:
            raise saved.unusable(f"A part of it is missing: {error.strerror}.") from None
        if size != stamp.bytes:
            raise saved.unusable(f"It has {size} bytes instead of {stamp.bytes}.")
        if overlay != stamp.overlay:
            raise saved.unusable("The VM's disk was written to after it was saved.")

    # --- the process

    @contextlib.contextmanager
    def _up(
        self, accelerator: Accelerator, version: Version, cancel: threading.Event, *,
        restoring: bool,
    ) -> Iterator[Monitor]:  # fmt: skip
        """QEMU, halted, with its monitor; ended again when the block fails."""
        command = command_line(self._settings, self._options, accelerator.name, restoring=restoring)
        processes.Running(
            accelerator=accelerator.name,
            sentence=accelerator.sentence,
            qemu_version=version.text,
            digest=digest(self._settings, self._options, accelerator.name),
            may_fall_back=self._options.accelerator == "auto" and accelerator.hardware,
            waits_since_s=time.monotonic(),
        ).write(self._files)
        child = processes.launch(modest(command), self._files)
        try:
            try:
                with self._connected(child, cancel) as monitor:
                    self._cap.apply(child.pid)
                    yield monitor
            except NotThere as error:
                raise self._died(child, str(error), restoring) from None
            except NoAnswer as error:
                raise DriverError(
                    Trouble.TIMEOUT, "QEMU did not answer while the VM started.", str(error),
                    "The agent ends it and tries again.",
                ) from None  # fmt: skip
            except Refused as error:
                raise DriverError(
                    Trouble.FAILED, "QEMU refused to start the VM.", str(error)
                ) from None
        except BaseException:
            self._end(child)
            raise

    def _connected(self, child: subprocess.Popen[bytes], cancel: threading.Event) -> Monitor:
        deadline = time.monotonic() + COMES_UP_WITHIN_S
        while True:
            self._unless_cancelled(cancel)
            if child.poll() is not None:
                raise NotThere("it ended")
            with contextlib.suppress(NotThere):
                return Monitor(self._files.control, CALL_LIMIT_S)
            if time.monotonic() > deadline:
                raise NoAnswer(f"It has not come up within {COMES_UP_WITHIN_S:g} s.")
            cancel.wait(_POLL_S)

    def _run(self, monitor: Monitor) -> None:
        monitor.call("cont", timeout_s=CALL_LIMIT_S)
        # An accelerator that cannot set up a processor aborts only now, sometimes after it
        # has answered.
        status = monitor.call("query-status", timeout_s=CALL_LIMIT_S)["status"]
        if status == "internal-error":
            raise _AcceleratorFailed("the guest's processor stopped with an internal error.")

    def _died(self, child: subprocess.Popen[bytes], why: str, restoring: bool) -> Exception:
        """Why did QEMU end? In its own words, from the log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(2.0)
        said = processes.last_words(self._files)
        words = said or f"{why} (exit code {child.returncode})"
        if child.returncode in _KILLED:
            return DriverError(Trouble.FAILED, "QEMU was ended while it started the VM.", words)
        if _HARDWARE_WORDS.search(said):
            return _AcceleratorFailed(words)
        for text, trouble, fix in _REASONS:
            if text in words:
                return DriverError(trouble, "QEMU could not start the VM.", words, fix)
        if restoring:  # an honest file makes no QEMU of the same version end
            return saved.unusable(f"QEMU does not take it: {words}")
        return DriverError(
            Trouble.FAILED, "QEMU ended while it started the VM.", words,
            f"The log is {self._files.log}.",
        )  # fmt: skip

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(processes.DIES_WITHIN_S)
        processes.reap()
        remove(self._files.pid, self._files.control, self._files.look, self._files.running)
        self._cap.remove()

    def _unless_cancelled(self, cancel: threading.Event) -> None:
        if cancel.is_set():
            raise DriverError(
                Trouble.CANCELLED, "The start was cancelled.", "Somebody needs this PC."
            )

    def _need_margin(self) -> None:
        """What the guest writes grows the overlay: never down to the user's last megabyte."""
        free_mb = shutil.disk_usage(self._files.folder).free // 2**20
        if free_mb < self._options.disk_margin_mb:
            raise DriverError(
                Trouble.DISK_FULL,
                f"There is too little room on the disk of {self._files.folder} to start the VM.",
                f"{free_mb} MB are free; {self._options.disk_margin_mb} MB must be.",
                "Free some space on this disk, or set disk_margin_mb lower.",
            )

    def need_tap(self) -> None:
        """As root QEMU would make a tap of its own that leads nowhere. Raises MISSING."""
        kind, _, tap = self._options.network.partition(":")
        if kind != "tap":
            return
        try:
            socket.if_nametoindex(tap)
        except OSError:
            raise DriverError(
                Trouble.MISSING, f"The tap interface {tap} does not exist.",
                f'The VM\'s network is set to "{self._options.network}".',
                "Make it on the bridge when the PC starts; docs/network.md shows how.",
            ) from None  # fmt: skip
