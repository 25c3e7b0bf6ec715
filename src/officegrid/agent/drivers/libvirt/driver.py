"""The libvirt driver: one domain of our own, handled by `virsh`.

A saved state is libvirt's "managed save": `start` restores it, and libvirt removes it once the
guest runs. A restore is not broken off when `start` is cancelled: libvirt would have to kill a
guest whose saved state it may just have removed. It takes a second or a few, and then has started.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.command import CommandCancelled
from officegrid.agent.drivers.libvirt import disk, health
from officegrid.agent.drivers.libvirt.domain import Places, domain_uuid, domain_xml
from officegrid.agent.drivers.libvirt.options import is_system, parse_options, uri_of
from officegrid.agent.drivers.libvirt.virsh import Domain, Virsh, failure
from officegrid.core.vm import (
    HOLDS_MEMORY,
    Capabilities,
    DriverError,
    Health,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)

SHORT_TIMEOUT_S = 30.0
START_TIMEOUT_S = 180.0
SAVE_TIMEOUT_S = 300.0
DESTROY_TIMEOUT_S = 40.0
REPAIRS = frozenset(RepairStep) - {RepairStep.RESTART_SERVICE}
"""libvirt itself is never restarted: it looks after VMs that are not ours."""
_ACTIVE = r"already active|already running"
_NOT_ACTIVE = r"domain is not running"


class LibvirtDriver:
    """See the module, and `agent.drivers.base.Driver`."""

    name = "libvirt"

    def __init__(self, settings: VmSettings) -> None:
        self.settings = settings
        self._options = parse_options(settings.options)
        self._virsh = Virsh(self._options.virsh, uri_of(self._options))
        self._uuid = domain_uuid(settings)
        self._places = Places.of(settings, self._options)
        self._process: psutil.Process | None = None

    def capabilities(self) -> Capabilities:
        system = is_system(self._options)
        return Capabilities(saves=True, imports=True, cpu_cap=system, repairs=REPAIRS)

    def detect(self) -> Health:
        return health.look(self._virsh, self._options)

    def state(self) -> VmStatus:
        try:
            domain = self._look()
            pids = self._pids() if domain.state in HOLDS_MEMORY else ()
            ready = None
            if domain.state is VmState.RUNNING:
                ready = self._places.ready.exists() and self._places.ready.stat().st_size > 0
            return VmStatus(domain.state, domain.detail, pids, ready)
        except Exception as error:  # state never raises
            return VmStatus(VmState.UNKNOWN, str(error).replace("\n", " "))

    def import_image(self) -> None:
        if self._look().state is not VmState.ABSENT:
            return
        owner = self._virsh.call("domuuid", self.settings.name, timeout_s=SHORT_TIMEOUT_S)
        if owner.exit_code == 0 and owner.stdout.strip() != self._uuid:
            raise DriverError(
                Trouble.NAME_TAKEN,
                f"There is a VM named {self.settings.name!r} in libvirt that is not ours.",
                f"Its UUID is {owner.stdout.strip()}, ours would be {self._uuid}.",
                "Give our VM another name in agent.toml, or rename the other one.",
            )
        disk.make_overlay(self._places.overlay, self.settings.image, self._options.image_tool)
        try:
            self._define()
        except DriverError:
            disk.remove(self._places.all())
            raise

    def start(self, cancel: threading.Event) -> None:
        state = self._present().state
        if cancel.is_set() and state in (VmState.OFF, VmState.SAVED):
            raise self._cancelled()
        if state is VmState.SAVED:
            self._restore()
        elif state is VmState.OFF:
            self._boot(cancel)
        elif state is VmState.PAUSED:
            self.resume()
        elif state is not VmState.RUNNING:
            raise self._wrong_state("started", state)
        self._lower_priority()

    def pause(self) -> None:
        if self._must_run("paused"):
            self._virsh.do(
                "suspend", self._uuid, timeout_s=SHORT_TIMEOUT_S, what="The VM cannot be paused."
            )

    def resume(self) -> None:
        if self._must_run("resumed", VmState.PAUSED):
            self._virsh.do(
                "resume", self._uuid, timeout_s=SHORT_TIMEOUT_S,
                what="The VM cannot be resumed.", done=_ACTIVE,
            )  # fmt: skip

    def save(self) -> None:
        state = self._present().state
        if state is VmState.SAVED:
            return
        if state not in (VmState.RUNNING, VmState.PAUSED):
            raise self._wrong_state("saved", state)
        # --running: a VM that was paused first goes on by itself after the restore.
        self._virsh.do(
            "managedsave", self._uuid, "--running",
            timeout_s=SAVE_TIMEOUT_S, what="The state of the VM cannot be saved.",
        )  # fmt: skip

    def stop(self) -> None:
        state = self._look().state
        if state in (VmState.ABSENT, VmState.OFF):
            return
        if state is not VmState.SAVED:
            self._destroy()
        self._forget_saved()

    def discard(self) -> None:
        if self._present().state is VmState.SAVED:
            self._forget_saved()

    def delete(self) -> None:
        state = self._look().state
        if state is not VmState.ABSENT:
            if state not in (VmState.OFF, VmState.SAVED):
                self._destroy()
            self._virsh.do(
                "undefine", self._uuid, "--managed-save", "--nvram", timeout_s=SHORT_TIMEOUT_S,
                what="The VM cannot be removed from libvirt.", done="failed to get domain",
            )  # fmt: skip
        disk.remove(self._places.all())

    def repair(self, step: RepairStep) -> None:
        if step not in REPAIRS:
            raise DriverError(
                Trouble.UNSUPPORTED,
                f"The libvirt driver has no repair {step!r}.",
                "libvirt looks after other VMs too.",
            )
        if step is RepairStep.EMERGENCY_STOP:
            self._emergency_stop()
        elif step is RepairStep.DISCARD:
            self.stop()
        elif step is RepairStep.REIMPORT:
            self.delete()
            self.import_image()
        status = self.state()
        if status.state in (VmState.BROKEN, VmState.UNKNOWN, VmState.STOPPING):
            raise DriverError(
                Trouble.STUCK,
                f"The VM is still {status.state} after the repair {step!r}.",
                status.detail,
            )

    # -- parts --------------------------------------------------------------------------------

    def _look(self) -> Domain:
        return self._virsh.look(self._uuid)

    def _present(self) -> Domain:
        domain = self._look()
        if domain.state is VmState.ABSENT:
            raise DriverError(
                Trouble.GONE,
                f"The VM {self.settings.name!r} is not there.",
                f"libvirt ({self._virsh.uri}) knows no domain {self._uuid}.",
                "The agent imports it again.",
            )
        return domain

    def _must_run(self, what: str, only: VmState = VmState.RUNNING) -> bool:
        """True: it is in the state to act on. False: the goal is reached already."""
        state = self._present().state
        if state not in (VmState.RUNNING, VmState.PAUSED):
            raise self._wrong_state(what, state)
        return state is only

    def _define(self) -> None:
        if self.settings.seed_iso is not None and self.settings.seed_iso.exists():
            disk.copy(self.settings.seed_iso, self._places.seed)
        else:
            self._places.seed.unlink(missing_ok=True)
        accelerator, _ = health.choose_accelerator(self._options)
        text = domain_xml(self.settings, self._options, accelerator)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "domain.xml"
            file.write_text(text, encoding="utf-8")
            self._virsh.do(
                "define", str(file), timeout_s=SHORT_TIMEOUT_S,
                what="libvirt does not take our VM.",
            )  # fmt: skip

    def _boot(self, cancel: threading.Event) -> None:
        self._define()  # the settings may have changed, and the seed may be there no longer
        self._places.ready.unlink(missing_ok=True)
        try:
            self._virsh.do(
                "start", self._uuid, timeout_s=START_TIMEOUT_S,
                what="The VM cannot be started.", done=_ACTIVE, cancel=cancel,
            )  # fmt: skip
        except CommandCancelled:
            # Only virsh has ended; libvirt goes on starting. Nothing is lost by a cold start.
            self._destroy()
            raise self._cancelled() from None

    def _restore(self) -> None:
        finished = self._virsh.call("start", self._uuid, timeout_s=START_TIMEOUT_S)
        if not finished.exit_code or re.search(_ACTIVE, finished.stderr):
            return
        error = failure("The VM cannot be started from its saved state.", finished)
        if error.trouble is not Trouble.FAILED or "connect" in error.why.lower():
            raise error
        # Any other reason is one of the saved state: a damaged file, or one that this QEMU or
        # this processor does not take. libvirt has no code of its own for it.
        raise DriverError(
            Trouble.SAVED_STATE,
            "The saved state of the VM cannot be used.",
            error.why,
            "It is thrown away, and the VM boots anew; units it held are done elsewhere.",
        )

    def _destroy(self) -> None:
        self._virsh.do(
            "destroy", self._uuid, timeout_s=DESTROY_TIMEOUT_S,
            what="The VM cannot be powered off.", done=f"{_NOT_ACTIVE}|failed to get domain",
        )  # fmt: skip

    def _forget_saved(self) -> None:
        self._virsh.do(
            "managedsave-remove", self._uuid, timeout_s=SHORT_TIMEOUT_S,
            what="The saved state of the VM cannot be removed.", done="failed to get domain",
        )  # fmt: skip

    def _emergency_stop(self) -> None:
        try:
            self._destroy()
        except DriverError:
            for pid in self._pids():
                with suppress(psutil.Error, OSError):
                    psutil.Process(pid).kill()
        deadline = time.monotonic() + SHORT_TIMEOUT_S
        while self.state().state in HOLDS_MEMORY:
            if time.monotonic() > deadline:
                raise DriverError(
                    Trouble.STUCK, "The VM does not end.", "Neither libvirt nor a kill ended it."
                )
            time.sleep(0.1)

    def _pids(self) -> tuple[int, ...]:
        """QEMU's process, known by the UUID that libvirt puts on its command line."""
        process = self._process
        if process is None or not process.is_running():
            process = self._process = next(filter(self._is_ours, psutil.process_iter()), None)
        return (process.pid,) if process is not None else ()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            words = process.cmdline()
        except (psutil.Error, OSError):
            return False
        return self._uuid in words and "-uuid" in words

    def _lower_priority(self) -> None:
        """A session's libvirt cannot weigh CPUs: nice does, as far as our user may."""
        if is_system(self._options):
            return
        for pid in self._pids():
            with suppress(psutil.Error, OSError):
                # On Linux each thread has its own; those of the guest's CPUs are what matters.
                for thread in psutil.Process(pid).threads():
                    psutil.Process(thread.id).nice(19)

    def _wrong_state(self, what: str, state: VmState) -> DriverError:
        trouble = Trouble.STUCK if state is VmState.BROKEN else Trouble.FAILED
        return DriverError(
            trouble, f"The VM cannot be {what}.", f"It is {state}.", "Look again in a moment."
        )

    def _cancelled(self) -> DriverError:
        return DriverError(
            Trouble.CANCELLED, "The start of the VM was cancelled.", "The PC is needed."
        )
