"""The driver object: every verb of `agent.drivers.base.Driver` for VirtualBox.

What may run beside what: verbs that change something hold the VM's lock (record.VmLock), one
after another, across processes. `state` takes no lock of ours: it must answer during a save that
takes minutes, and showvminfo disturbs nobody; several callers share one reading. `pause` waits a
fifth of a second for the lock at most, and for no poll: somebody sits at the PC.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.virtualbox import (
    health,
    importing,
    ladder,
    parse,
    starting,
    stopping,
    sweeping,
)
from officegrid.agent.drivers.virtualbox.manage import PASSING, Reply, failure
from officegrid.agent.drivers.virtualbox.options import read_options
from officegrid.agent.drivers.virtualbox.record import RECORD
from officegrid.agent.drivers.virtualbox.vm import RESTING, Sight, Vm, gone
from officegrid.agent.drivers.virtualbox.vmlog import paused_for_full_disk
from officegrid.agent.log import get_logger
from officegrid.core.vm import (
    Capabilities,
    DriverError,
    Health,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)

log = get_logger("virtualbox")

_LOCK_WAIT_S = 30.0
_PAUSE_LOCK_WAIT_S = 0.2
_FRESH_S = {VmState.ABSENT: 60.0, VmState.OFF: 60.0, VmState.SAVED: 60.0, VmState.RUNNING: 5.0,
            VmState.PAUSED: 5.0}  # fmt: skip
"""How long a reading may be used again while none of VirtualBox's files has changed: a call costs
some 50 ms of CPU and wakes VBoxSVC."""
_ON_THE_WAY = frozenset({VmState.STARTING, VmState.SAVING, VmState.STOPPING})


class VirtualBoxDriver:
    """See the module. Made by `make`."""

    name = "virtualbox"

    def __init__(self, settings: VmSettings) -> None:
        self._vm = Vm(settings, read_options(settings.options))
        self._poll = threading.Lock()
        self._reading: tuple[float, object, VmStatus, Sight] | None = None
        self._since: tuple[str, float] = ("", 0.0)
        self._changes = 0

    def capabilities(self) -> Capabilities:
        return Capabilities(
            image_format="ova",
            saves=True,
            imports=True,
            pauses=True,
            cpu_cap=True,
            repairs=frozenset(RepairStep),
        )

    def detect(self) -> Health:
        try:
            return health.examine(self._vm)
        except DriverError as error:
            return health.unusable(error)
        except OSError as error:
            return health.unusable(
                DriverError(Trouble.FAILED, "VirtualBox cannot be examined.", str(error))
            )

    # -- state --------------------------------------------------------------------------------

    def state(self) -> VmStatus:
        asked = self._changes, time.monotonic()
        with self._poll:
            try:
                return self._read_state(*asked)
            except DriverError as error:
                return VmStatus(VmState.UNKNOWN, f"{error.what} {error.why}".strip())
            except OSError as error:
                return VmStatus(VmState.UNKNOWN, f"VirtualBox cannot be asked: {error}")

    def _read_state(self, changes: int, asked_s: float) -> VmStatus:
        kept = self._reading
        if kept is not None and changes == self._changes:
            read_s, marks, status, sight = kept
            if read_s >= asked_s:  # somebody else read it while we waited for our turn
                return status
            fresh = asked_s - read_s < _FRESH_S.get(status.state, 0.0)
            if fresh and marks == self._marks(sight) and self._vm.pids() == status.pids:
                return status
        started_s = time.monotonic()
        changes = self._changes
        sight = self._vm.look()
        status = self._status(sight)
        if changes == self._changes:
            self._reading = (started_s, self._marks(sight), status, sight)
        return status

    def _marks(self, sight: Sight) -> object:
        """Fingerprints of the files that VirtualBox writes whenever a VM changes its state."""
        home = self._vm.environment.get("VBOX_USER_HOME")
        files = [Path(home) / "VirtualBox.xml"] if home else []
        files.append(self._vm.folder / RECORD)
        if sight.info.get("CfgFile"):
            files.append(Path(sight.info["CfgFile"]))
        if sight.log_folder:
            files.append(Path(sight.log_folder) / "VBox.log")
        marks: list[tuple[int, int] | None] = []
        for file in files:
            try:
                facts = file.stat()
                marks.append((facts.st_mtime_ns, facts.st_size))
            except OSError:
                marks.append(None)
        return marks

    def _status(self, sight: Sight) -> VmStatus:
        if sight.word != self._since[0]:
            self._since = (sight.word, time.monotonic())
        for_s = time.monotonic() - self._since[1]
        if sight.state is VmState.ABSENT:
            detail = ""
            if sight.info:
                detail = f"A VM named {self._vm.settings.name!r} exists, but it is not ours."
            return VmStatus(VmState.ABSENT, detail)
        if self._vm.is_aside and sight.state is VmState.OFF:
            return VmStatus(VmState.ABSENT, "It is set aside until its image is imported again.")
        pids = () if sight.state in RESTING else self._vm.pids(sight)
        if sight.state in _ON_THE_WAY and not pids:
            pids = self._vm.pids(search=True)
            if not pids and for_s >= self._vm.options.stuck_after_s:
                return VmStatus(
                    VmState.BROKEN,
                    f"VirtualBox says {sight.word!r} for {for_s:.0f} s, but the VM has no process.",
                )
        return VmStatus(sight.state, self._detail(sight, for_s), pids)

    def _detail(self, sight: Sight, for_s: float) -> str:
        if sight.state in _ON_THE_WAY:
            return f"{sight.word}, for {for_s:.0f} s so far"
        if sight.word == "aborted-saved":
            return "aborted-saved: it died while it was restored; its saved state is still there"
        if sight.word == "inaccessible":
            return "VirtualBox cannot read the VM's settings file."
        if sight.word == "gurumeditation":
            return "gurumeditation: the guest crashed the virtual processor"
        if sight.state is VmState.PAUSED and paused_for_full_disk(self._vm.log(sight).tail):
            return "VirtualBox paused the VM because the disk is full."
        if sight.state is VmState.RUNNING and self._vm.priority_problem:
            return self._vm.priority_problem
        return sight.word

    def _changed(self) -> None:
        self._changes += 1
        self._reading = None

    # -- verbs --------------------------------------------------------------------------------

    def import_image(self) -> None:
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                importing.import_image(self._vm)
            finally:
                self._changed()

    def start(self, cancel: threading.Event) -> None:
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                sight = self._existing()
                if sight.state is VmState.PAUSED:
                    self._resume(sight)
                else:
                    starting.start(self._vm, sight, cancel)
            finally:
                self._changed()

    def pause(self) -> None:
        with self._vm.lock.hold(_PAUSE_LOCK_WAIT_S, urgent=True):
            try:
                self._pause()
            finally:
                self._changed()

    def _pause(self) -> None:
        """Call first, ask later: a look beforehand would cost the desk user 50 ms."""
        options, manage = self._vm.options, self._vm.manage
        if self._vm.machine is None:
            self._existing()
        deadline_s = time.monotonic() + options.pause_timeout_s
        while True:
            left_s = max(0.5, deadline_s - time.monotonic())
            reply = manage.call("controlvm", self._vm.uuid, "pause", timeout_s=left_s)
            if reply.ok:
                return
            state = self._existing().state
            if state in (VmState.PAUSED, VmState.OFF, VmState.SAVED):
                return
            again = state is VmState.STARTING or state is VmState.SAVING or reply.code in PASSING
            if not again or time.monotonic() >= deadline_s:
                raise _refused("The VM could not be paused.", reply, state)
            time.sleep(0.05)

    def resume(self) -> None:
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                self._resume(self._existing())
            finally:
                self._changed()

    def _resume(self, sight: Sight) -> None:
        if sight.state is VmState.RUNNING:
            return
        if sight.state is not VmState.PAUSED:
            raise DriverError(
                Trouble.FAILED, "The VM cannot go on: it is not paused.", f"It is {sight.word}."
            )
        if paused_for_full_disk(self._vm.log(sight).tail):
            self._vm.require_disk("run")
        reply = self._vm.manage.call_patiently(
            "controlvm", self._vm.uuid, "resume", timeout_s=self._vm.options.change_timeout_s
        )
        if not reply.ok and (state := self._existing().state) is not VmState.RUNNING:
            raise _refused("The paused VM could not go on.", reply, state)

    def save(self) -> None:
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                self._save(self._existing())
            finally:
                self._changed()

    def _save(self, sight: Sight) -> None:
        vm, options = self._vm, self._vm.options
        if sight.state is VmState.SAVED:
            return
        if sight.state not in (VmState.RUNNING, VmState.PAUSED, VmState.SAVING):
            raise DriverError(
                Trouble.FAILED, "There is nothing to save.", f"The VM is {sight.word}."
            )
        vm.require_disk("save")
        deadline_s = time.monotonic() + options.save_timeout_s
        reply: Reply | None = None
        while not sight.has_saved_state:
            if sight.state in (VmState.RUNNING, VmState.PAUSED):
                if reply is not None and reply.code not in PASSING:
                    raise failure("The VM could not be saved.", reply)
                left_s = max(1.0, deadline_s - time.monotonic())
                reply = vm.manage.call("controlvm", vm.uuid, "savestate", timeout_s=left_s)
            sight = vm.wait(lambda now: now.state is not VmState.SAVING, 1.0)
            if sight.state in (VmState.OFF, VmState.ABSENT, VmState.BROKEN):
                raise DriverError(
                    Trouble.FAILED,
                    "The VM ended while it was being saved; its work since the last start is lost.",
                    f"VirtualBox says {sight.word!r}. {reply.words if reply else ''}".strip(),
                )
            if time.monotonic() >= deadline_s:
                raise DriverError(
                    Trouble.TIMEOUT,
                    f"The VM was not saved within {options.save_timeout_s:g} s.",
                    f"VirtualBox still says {sight.word!r}.",
                    "Is the disk very slow? Lower memory_mb in agent.toml.",
                )
        self._settle_saved(sight)

    def _settle_saved(self, sight: Sight) -> None:
        """ "saved" may be seen before the process has gone and before the disk has it all."""
        vm = self._vm
        if not vm.wait_for_process_end(10.0) and vm.kill():
            log.warning("process_ended", why="It stayed after the state was saved.")
        state_file = sight.info.get("VMStateFile")
        if state_file and os.name == "posix":
            try:
                descriptor = os.open(state_file, os.O_RDONLY)
            except OSError as error:
                raise DriverError(
                    Trouble.FAILED, "The saved state is not on the disk.", str(error)
                ) from None
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        vm.remember_also(saved_by=str(vm.version()))

    def stop(self) -> None:
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                stopping.power_off(self._vm)
                stopping.discard(self._vm)
            finally:
                self._changed()

    def discard(self) -> None:
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                stopping.discard(self._vm)
            finally:
                self._changed()

    def delete(self) -> None:
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                importing.delete(self._vm)
            finally:
                self._changed()

    def reset(self) -> None:
        """See `drivers.base.Resetter`."""
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                importing.reset(self._vm)
            finally:
                self._changed()

    def sweep(self, keep_name: str) -> list[str]:
        """See `drivers.base.Sweeper`."""
        with self._vm.lock.hold(_LOCK_WAIT_S):
            return sweeping.sweep(self._vm, keep_name)

    def repair(self, step: RepairStep) -> None:
        with self._vm.lock.hold(_LOCK_WAIT_S):
            try:
                ladder.repair(self._vm, step)
            finally:
                self._changed()

    def _existing(self) -> Sight:
        sight = self._vm.look()
        aside = self._vm.is_aside and sight.state is VmState.OFF
        if sight.state is VmState.ABSENT or aside:
            raise gone(self._vm.settings.name)
        return sight


def _refused(what: str, reply: Reply, state: VmState) -> DriverError:
    """A verb that failed although nothing is wrong by its code: the hypervisor is stuck."""
    if reply.code == parse.FAIL and state in (VmState.STOPPING, VmState.BROKEN, VmState.UNKNOWN):
        return DriverError(
            Trouble.STUCK,
            what,
            f"VirtualBox keeps the VM {state} and refuses every call. {reply.words}",
            "The agent ends VBoxSVC, which keeps the wrong state.",
        )
    return failure(what, reply)
