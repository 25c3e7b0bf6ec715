"""The libvirt driver: one domain of our own, handled by `virsh`.

A saved state is libvirt's "managed save": `start` restores it, and libvirt removes it once the
guest runs. A restore is not broken off when `start` is cancelled: libvirt would have to kill a
guest whose saved state it may just have removed. It takes a second or a few, and then has started.

A libvirt that hangs does not keep the PC from its user: `pause` waits for it for PAUSE_TIMEOUT_S,
then stops QEMU's process by a signal, and such a process counts as paused until `resume`.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from pathlib import Path

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.command import CommandCancelled
from officegrid.agent.drivers.libvirt import disk, health, sweep
from officegrid.agent.drivers.libvirt.domain import Places, domain_uuid, domain_xml, is_ours
from officegrid.agent.drivers.libvirt.options import is_system, parse_options, uri_of
from officegrid.agent.drivers.libvirt.process import QemuProcess
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

PAUSE_TIMEOUT_S = 2.5
SHORT_TIMEOUT_S = 15.0
START_TIMEOUT_S = 180.0
DESTROY_TIMEOUT_S = 20.0
EMERGENCY_TIMEOUT_S = 3.0
ABORT_TIMEOUT_S = 3.0
GUEST_FILE_MOST_BYTES = 4 * 2**20
"""Of console and ready port each; virtlogd, where it writes them, keeps less by itself."""
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
        self._process = QemuProcess(self._uuid)

    def capabilities(self) -> Capabilities:
        system = is_system(self._options)
        return Capabilities(
            saves=True, imports=True, cpu_cap=system, repairs=REPAIRS, image_format="qcow2"
        )

    def detect(self) -> Health:
        return health.look(self._virsh, self._options)

    def state(self) -> VmStatus:
        try:
            disk.trim((self._places.console, self._places.ready), GUEST_FILE_MOST_BYTES)
            if self._process.is_stopped(search=False):
                return self._stopped()
            domain = self._look()
            if domain.state not in HOLDS_MEMORY:
                return VmStatus(domain.state, domain.detail)
            if self._process.is_stopped():  # by an agent before us
                return self._stopped()
            ready = self._is_ready() if domain.state is VmState.RUNNING else None
            return VmStatus(domain.state, domain.detail, self._pids(), ready)
        except Exception as error:  # state never raises
            if self._process.is_stopped():
                return self._stopped()
            # Whatever libvirt says or does not: this memory and CPU count as ours.
            return VmStatus(VmState.UNKNOWN, str(error).replace("\n", " "), self._pids())

    def import_image(self) -> None:
        if self._look().state is not VmState.ABSENT:
            return
        owner = self._virsh.call("domuuid", self.settings.name, timeout_s=SHORT_TIMEOUT_S)
        if owner.exit_code == 0 and self._is_former(owner.stdout.strip()):
            self._remove_former(owner.stdout.strip())
        elif owner.exit_code == 0 and owner.stdout.strip() != self._uuid:
            raise DriverError(
                Trouble.NAME_TAKEN,
                f"There is a VM named {self.settings.name!r} in libvirt that is not ours.",
                f"Its UUID is {owner.stdout.strip()}, ours would be {self._uuid}.",
                "Give our VM another name in agent.toml, or rename the other one.",
            )
        image = self.settings.image
        if is_system(self._options):
            image = disk.reachable(image, sweep.base_of(self._places))
        disk.make_overlay(self._places.overlay, image, self._options.image_tool)
        try:
            self._define()
        except DriverError:
            disk.remove(sweep.files_of(self._places))
            raise

    def _is_former(self, found: str) -> bool:
        """Is this domain ours, from before this PC got another id? See `domain.is_ours`."""
        told = self._virsh.call("dumpxml", found, timeout_s=SHORT_TIMEOUT_S)
        return found != self._uuid and not told.exit_code and is_ours(told.stdout, self.settings)

    def _remove_former(self, found: str) -> None:
        self._destroy(uuid=found)
        self._virsh.do(
            "undefine", found, "--managed-save", "--nvram", timeout_s=SHORT_TIMEOUT_S,
            what="The VM from before this PC became another one cannot be removed from libvirt.",
            done="failed to get domain",
        )  # fmt: skip
        disk.remove(sweep.files_of(Places.named(self._places.folder, found)))

    def start(self, cancel: threading.Event) -> None:
        if self._process.is_stopped():
            self.resume()
            return
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
        if self._process.is_stopped():
            return
        try:
            # Without a look first: somebody waits, and libvirt takes it for a paused VM, too.
            self._virsh.do(
                "suspend", self._uuid, timeout_s=PAUSE_TIMEOUT_S, what="The VM cannot be paused."
            )
        except DriverError as error:
            if error.trouble not in (Trouble.TIMEOUT, Trouble.LOCKED):
                raise
            if not self._process.freeze():
                raise

    def resume(self) -> None:
        self._process.thaw()
        if self._must_run("resumed", VmState.PAUSED):
            self._virsh.do(
                "resume", self._uuid, timeout_s=SHORT_TIMEOUT_S,
                what="The VM cannot be resumed.", done=_ACTIVE,
            )  # fmt: skip

    def save(self) -> None:
        state = self._present().state
        if state is VmState.SAVED:
            return
        if self._process.is_stopped():
            # libvirt answers again: now it can halt the guest, in place of the signal.
            self._process.thaw()
            self._virsh.do(
                "suspend", self._uuid, timeout_s=PAUSE_TIMEOUT_S, what="The VM cannot be paused."
            )
        if state not in (VmState.RUNNING, VmState.PAUSED):
            raise self._wrong_state("saved", state)
        # --running: a VM that was paused first goes on by itself after the restore.
        try:
            self._virsh.do(
                "managedsave", self._uuid, "--running",
                timeout_s=self._options.save_timeout_s,
                what="The state of the VM cannot be saved.",
            )  # fmt: skip
        except DriverError as error:
            if error.trouble is Trouble.TIMEOUT:
                # Only virsh was ended; libvirt would go on. It removes what it has written.
                self._virsh.call("domjobabort", self._uuid, timeout_s=ABORT_TIMEOUT_S)
            raise

    def stop(self) -> None:
        if self._process.is_stopped():
            self._process.kill()  # a stopped process does not hear libvirt's polite signal
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
        disk.remove(sweep.files_of(self._places))

    def sweep(self, keep_name: str) -> list[str]:
        """See `drivers.base.Sweeper`; ours is known by its UUID, made of folder and name."""
        return sweep.sweep(self._virsh, self.settings, self._places, self._uuid)

    def disk_bytes(self) -> int:
        """See `drivers.base.Sweeper`."""
        return sweep.disk_bytes(self._places, self.settings, self._options)

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

    def _stopped(self) -> VmStatus:
        return VmStatus(VmState.PAUSED, "stopped by a signal", self._pids())

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
        self._need_room()
        self._define()  # the settings may have changed, and the seed may be there no longer
        disk.remove(self._places.told_ready())
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
        self._need_room()
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

    def _need_room(self) -> None:
        if self._places.folder.is_dir():
            disk.need_room(self._places.folder, self._options.disk_margin_mb)

    def _is_ready(self) -> bool:
        told = (path for path in self._places.told_ready() if path.exists())
        return any(path.stat().st_size > 0 for path in told)

    def _destroy(self, timeout_s: float = DESTROY_TIMEOUT_S, uuid: str = "") -> None:
        self._virsh.do(
            "destroy", uuid or self._uuid, timeout_s=timeout_s,
            what="The VM cannot be powered off.", done=f"{_NOT_ACTIVE}|failed to get domain",
        )  # fmt: skip

    def _forget_saved(self) -> None:
        self._virsh.do(
            "managedsave-remove", self._uuid, timeout_s=SHORT_TIMEOUT_S,
            what="The saved state of the VM cannot be removed.", done="failed to get domain",
        )  # fmt: skip

    def _emergency_stop(self) -> None:
        """The process is what holds the PC's memory: it is gone afterwards, whatever libvirt
        says."""
        try:
            if not self._process.is_stopped():
                self._destroy(EMERGENCY_TIMEOUT_S)
        except DriverError:
            pass  # the kill below tells whether it matters
        self._process.kill()
        deadline = time.monotonic() + SHORT_TIMEOUT_S
        while self.state().state in HOLDS_MEMORY:
            if time.monotonic() > deadline:
                raise DriverError(
                    Trouble.STUCK, "The VM does not end.", "Neither libvirt nor a kill ended it."
                )
            time.sleep(0.1)

    def _pids(self) -> tuple[int, ...]:
        process = self._process.find()
        return (process.pid,) if process is not None else ()

    def _lower_priority(self) -> None:
        """A session's libvirt cannot weigh CPUs: nice does, as far as our user may."""
        if not is_system(self._options):
            self._process.lower_priority()

    def _wrong_state(self, what: str, state: VmState) -> DriverError:
        trouble = Trouble.STUCK if state is VmState.BROKEN else Trouble.FAILED
        return DriverError(
            trouble, f"The VM cannot be {what}.", f"It is {state}.", "Look again in a moment."
        )

    def _cancelled(self) -> DriverError:
        return DriverError(
            Trouble.CANCELLED, "The start of the VM was cancelled.", "The PC is needed."
        )
