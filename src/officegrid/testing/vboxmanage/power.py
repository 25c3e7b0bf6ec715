"""Sub-commands that move a VM: startvm, controlvm, discardstate; and their faults.

FAULTS here: locked, server_exec, not_ready, exit0_error, exit1_success, hang, cpuid_mismatch,
aborted_saved, start_failure (with `status`), disk_full, silent (does nothing, exit 0).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from officegrid.testing.vboxmanage.modes import Modes
from officegrid.testing.vboxmanage.session import Service, order, wait_done, wait_while
from officegrid.testing.vboxmanage.store import RESTING, Home
from officegrid.testing.vboxmanage.texts import VerbFailedError, Writer

NOT_FOUND = ("VBOX_E_OBJECT_NOT_FOUND", 0x80BB0001)
INVALID_STATE = ("VBOX_E_INVALID_VM_STATE", 0x80BB0002)
FILE_ERROR = ("VBOX_E_FILE_ERROR", 0x80BB0004)
IPRT_ERROR = ("VBOX_E_IPRT_ERROR", 0x80BB0005)
LOCKED = ("VBOX_E_INVALID_OBJECT_STATE", 0x80BB0007)
FAILED = ("NS_ERROR_FAILURE", 0x80004005)
CONSOLE = "ConsoleWrap, interface IConsole, callee nsISupports"
_LAUNCH = (
    '"LaunchVMProcess(a->session, sessionType.raw(), ComSafeArrayAsInParam(aBstrEnv), '
    'progress.asOutParam())" at line 919 of file VBoxManageMisc.cpp'
)
_SHARED = '"LockMachine(a->session, LockType_Shared)" at line 369 of file VBoxManageControlVM.cpp'
_CONTROL_FIND = (
    '"FindMachine(Bstr(a->argv[0]).raw(), machine.asOutParam())" at line 357 of file '
    "VBoxManageControlVM.cpp"
)
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
_STATE_NAMES = {
    "poweroff": "PoweredOff", "running": "Running", "paused": "Paused", "saved": "Saved",
    "aborted": "Aborted", "aborted-saved": "AbortedSaved", "saving": "Saving",
}  # fmt: skip


class Call:
    """One call of the stand-in: what its sub-commands share."""

    def __init__(
        self, modes: Modes, service: Service, home: Home, fault: dict[str, Any] | None
    ) -> None:
        self.modes = modes
        self.service = service
        self.home = home
        self.fault = fault
        self.kind = str(fault["kind"]) if fault else ""
        self.writer = Writer(modes)

    def find(self, target: str, context: str) -> str:
        with self.home.locked():
            uuid = self.home.find(target)
        if uuid is None:
            self.writer.error(
                "Could not find a registered machine named '{0}'", target,
                code=NOT_FOUND, context=context,
                component="VirtualBoxWrap, interface IVirtualBox, callee nsISupports",
            )  # fmt: skip
            raise VerbFailedError
        return uuid

    def locked_by_session(self, uuid: str) -> bool:
        with self.home.locked():
            session, state = self.home.session(uuid), self.home.state(uuid)
        return state not in RESTING or float(session.get("unlocks_s", 0)) > time.time()

    def common_fault(self, name: str) -> None:
        """Faults that every changing sub-command can have, before it does anything."""
        writer = self.writer
        if self.kind == "locked":
            writer.error(
                "The machine '{0}' is already locked by a session (or being locked or unlocked)",
                name, code=LOCKED, context=_LAUNCH,
            )  # fmt: skip
            raise VerbFailedError
        if self.kind == "server_exec":
            text = "Failed to create the VirtualBox object!\nCode CO_E_SERVER_EXEC_FAILURE "
            writer.error(text + "(0x80080005) - Server execution failed")
            raise VerbFailedError
        if self.kind == "not_ready":
            writer.error("The object is not ready", code=("E_ACCESSDENIED", 0x80070005))
            raise VerbFailedError
        if self.kind == "exit0_error":
            writer.error("Something went wrong with '{0}'", name, code=FAILED)
            raise VerbFailedError(0)
        if self.kind == "silent":
            raise VerbFailedError(0)
        if self.kind == "hang":
            time.sleep(float((self.fault or {}).get("for_s", 600)))
            raise VerbFailedError


def startvm(call: Call, words: list[str]) -> None:
    target = words[0]
    kind = words[words.index("--type") + 1] if "--type" in words else "gui"
    context = (
        '"FindMachine(Bstr(pszVM).raw(), machine.asOutParam())" at line 906 of file '
        "VBoxManageMisc.cpp"
    )
    uuid = call.find(target, context)
    with call.home.locked():
        name, stuck = call.home.settings(uuid)["name"], call.home.session(uuid).get("stuck")
    if kind == "emergencystop":
        _emergency_stop(call, uuid, bool(stuck))
        return
    if kind not in ("headless", "gui"):
        call.writer.error(
            "Invalid frontend name: '{0}'", kind, code=("NS_ERROR_INVALID_ARG", 0x80070057),
            context=_LAUNCH,
        )  # fmt: skip
        raise VerbFailedError
    call.common_fault(name)
    if stuck:
        call.writer.bare_error(_LAUNCH)
        raise VerbFailedError
    if call.locked_by_session(uuid):
        call.writer.error(
            "The machine '{0}' is already locked by a session (or being locked or unlocked)",
            name, code=LOCKED, context=_LAUNCH,
        )  # fmt: skip
        raise VerbFailedError
    _power_on(call, uuid, name)


def _power_on(call: Call, uuid: str, name: str) -> None:
    home, writer = call.home, call.writer
    fails = {
        "cpuid_mismatch": "VERR_SSM_LOAD_CPUID_MISMATCH",
        "aborted_saved": "die",
        "start_failure": str((call.fault or {}).get("status", "VERR_INTERNAL_ERROR")),
    }.get(call.kind, "")
    writer.out(writer.say('Waiting for VM "{0}" to power on...', name))
    with home.locked():
        settings = home.settings(uuid)
        restoring = bool(settings.get("state_file"))
        order(home, uuid, "start", fail=fails)
        pid = call.service.start_vm(home, uuid, name)
        home.set_session(
            uuid, state="restoring" if restoring else "starting", pid=pid, failed="", stuck=False
        )
    state = wait_while(home, uuid, ("starting", "restoring"), call.modes.is_old)
    if state == "running":
        writer.out(writer.say('VM "{0}" has been successfully started.', name))
        if call.kind == "disk_full":
            _order(call, uuid, "disk_full")
        if call.kind == "exit1_success":
            raise VerbFailedError
        return
    with home.locked():
        failed = str(home.session(uuid).get("failed", ""))
    _say_start_failure(call, name, failed, restoring)
    raise VerbFailedError


def _say_start_failure(call: Call, name: str, failed: str, restoring: bool) -> None:
    session = "SessionMachine, interface ISession"
    if failed.startswith("VERR_SSM_LOAD_CPUID"):
        text = f"cpum#1: X86_CPUID_FEATURE_ECX_MONITOR mismatch [ver=14 pass=final] ({failed})"
        call.writer.error(text, code=FAILED, component="ConsoleWrap, interface IConsole")
    elif restoring and failed.startswith("VERR_SSM"):
        what = "The VM session was closed before any attempt to power it on"
        call.writer.error(what, code=FAILED, component=session)
    else:
        text = (
            "The virtual machine '{0}' has terminated unexpectedly during startup with exit code 1 "
            "(0x1)"
        )
        component = "MachineWrap, interface IMachine"
        call.writer.error(text, name, code=FAILED, component=component)


def _emergency_stop(call: Call, uuid: str, stuck: bool) -> None:
    if stuck or call.kind:
        call.writer.bare_error(_LAUNCH)
        raise VerbFailedError
    with call.home.locked():
        pid = int(call.home.session(uuid).get("pid", 0))
    if pid:
        _kill(pid)
        running = ("starting", "restoring", "running", "paused", "saving", "stopping")
        wait_while(call.home, uuid, running, call.modes.is_old)


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, KILL)


def controlvm(call: Call, words: list[str]) -> None:
    uuid = call.find(words[0], _CONTROL_FIND)
    home, writer = call.home, call.writer
    with home.locked():
        name, session = home.settings(uuid).get("name", ""), home.session(uuid)
        state = home.state(uuid)
    if session.get("stuck"):
        writer.bare_error(_SHARED)
        raise VerbFailedError
    action, rest = words[1], words[2:]
    if state in RESTING:
        writer.error("Machine '{0}' is not currently running.", name)
        raise VerbFailedError
    call.common_fault(name)
    if state not in ("running", "paused"):
        writer.error(
            "The machine '{0}' is already locked by a session (or being locked or unlocked)",
            name, code=LOCKED, context=_SHARED,
        )  # fmt: skip
        raise VerbFailedError
    known = {"pause": _pause, "resume": _resume, "savestate": _savestate, "poweroff": _poweroff}
    if action in known:
        known[action](call, uuid, state)
        if call.kind == "exit1_success":
            raise VerbFailedError
    elif action in ("cpuexecutioncap", "vm-process-priority"):
        key = {"cpuexecutioncap": "cpuexecutioncap", "vm-process-priority": "priority"}[action]
        with home.locked():
            home.change(uuid, **{key: int(rest[0]) if rest[0].isdigit() else rest[0]})
    elif action == "setlinkstate1":
        with home.locked():
            home.change(uuid, cable=rest[0])
    elif action == "shutdown":
        writer.error(
            "Could not create guest session: VERR_NOT_FOUND", code=IPRT_ERROR,
            component="GuestWrap, interface IGuest, callee nsISupports",
            context='"Shutdown(ComSafeArrayAsInParam(aShutdownFlags))" at line 694 of file '
            "VBoxManageControlVM.cpp",
        )  # fmt: skip
        raise VerbFailedError
    elif action not in ("acpipowerbutton", "acpisleepbutton"):
        writer.err("Usage:\n(the usage text of controlvm)")
        for _ in range(2):  # recorded: it says so twice
            writer.error(f"Invalid parameter '{action}'.")
        raise VerbFailedError


def _order(call: Call, uuid: str, do: str, **more: object) -> str:
    """Have the VM's process do it. Returns the state after that."""
    with call.home.locked():
        number = order(call.home, uuid, do, **more)
    return wait_done(call.home, uuid, number, call.modes.is_old)


def _pause(call: Call, uuid: str, state: str) -> None:
    if state == "paused":
        call.writer.error(
            "Already paused", code=INVALID_STATE, component=CONSOLE,
            context='"Pause()" at line 388 of file VBoxManageControlVM.cpp',
        )  # fmt: skip
        raise VerbFailedError
    time.sleep(call.modes.delay_s("pause"))
    _order(call, uuid, "pause")


def _resume(call: Call, uuid: str, state: str) -> None:
    if state != "paused":
        text = "Cannot resume the machine as it is not paused (machine state: {0})"
        call.writer.error(
            text, _STATE_NAMES[state], code=INVALID_STATE, component=CONSOLE,
            context='"Resume()" at line 393 of file VBoxManageControlVM.cpp',
        )  # fmt: skip
        raise VerbFailedError
    _order(call, uuid, "resume")


def _savestate(call: Call, uuid: str, state: str) -> None:
    was_paused = state == "paused"
    if not was_paused:  # VBoxManage itself pauses before it saves, and resumes after a failure
        _pause(call, uuid, state)
    status = "VERR_DISK_FULL" if call.kind == "disk_full" else ""
    after = _order(call, uuid, "savestate", fail=status)
    if after == "saved":
        call.writer.progress()
        return
    if after == "paused" and not was_paused:
        _resume(call, uuid, after)
    text = f"Failed to save the machine state ({status or 'VERR_GENERAL_FAILURE'})"
    call.writer.error("0%...\nSaving the execution state failed\n" + text, code=FAILED)
    raise VerbFailedError


def _poweroff(call: Call, uuid: str, state: str) -> None:
    _order(call, uuid, "poweroff")
    call.writer.progress()


def discardstate(call: Call, words: list[str]) -> None:
    """A failure ends with exit code 0 (recorded)."""
    context = (
        '"FindMachine(Bstr(a->argv[0]).raw(), machine.asOutParam())" at line 1280 of file '
        "VBoxManageMisc.cpp"
    )
    uuid = call.find(words[0], context)
    with call.home.locked():
        name, stuck = call.home.settings(uuid)["name"], call.home.session(uuid).get("stuck")
    call.common_fault(name)
    if stuck:
        call.writer.bare_error(_SHARED)
        raise VerbFailedError
    if call.locked_by_session(uuid):
        call.writer.error(
            "The machine '{0}' is already locked for a session (or being unlocked)", name,
            code=LOCKED,
        )  # fmt: skip
        raise VerbFailedError
    with call.home.locked():
        state, settings = call.home.state(uuid), call.home.settings(uuid)
        if state in ("saved", "aborted-saved"):
            if settings.get("state_file"):
                Path(settings["state_file"]).unlink(missing_ok=True)
            call.home.change(uuid, state_file="", aborted=False)
            call.home.set_session(uuid, state="poweroff", pid=0)
            return
    text = (
        "Cannot discard the saved state as the machine is not in the Saved or Aborted-Saved state "
        "(machine state: {0})"
    )
    call.writer.error(
        text, _STATE_NAMES.get(state, state.title()), code=INVALID_STATE,
        component="SessionMachine, interface IMachine, callee nsISupports",
        context='"DiscardSavedState(true )" at line 1291 of file VBoxManageMisc.cpp',
    )  # fmt: skip
    raise VerbFailedError(0)
