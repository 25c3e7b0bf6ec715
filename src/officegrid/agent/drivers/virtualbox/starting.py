"""Starting, with all the ways a start fails.

`startvm` waits until the VM is powered on, restore included. Its exit code is not to be trusted
(1 after success on some systems), and its lock may still be held by the session that has just
saved the VM. So the state is read back after each try, and it decides.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from officegrid.agent.drivers import command
from officegrid.agent.drivers.virtualbox import importing, parse, processes
from officegrid.agent.drivers.virtualbox.health import judged
from officegrid.agent.drivers.virtualbox.manage import BACKOFF_S, PASSING, Reply, failure
from officegrid.agent.drivers.virtualbox.stopping import stuck
from officegrid.agent.drivers.virtualbox.vm import RESTING, Sight, Vm, gone
from officegrid.agent.drivers.virtualbox.vmlog import (
    Cause,
    cause_in_log,
    cause_of,
    paused_for_full_disk,
)
from officegrid.agent.log import get_logger
from officegrid.core.vm import DriverError, HealthLevel, Trouble, VmState

log = get_logger("virtualbox")

_CANCEL_GRACE_S = 1.0
"""After `cancel`, how long the start may still take to succeed before it is killed."""
_SETTLE_S = 10.0
WHAT = "The VM could not be started."


def start(vm: Vm, sight: Sight, cancel: threading.Event) -> None:
    """From OFF or SAVED until the guest's CPUs run; raises what the driver interface says."""
    if sight.state not in (VmState.OFF, VmState.SAVED):
        sight = vm.wait(_arrived, _SETTLE_S)
    if sight.state is VmState.RUNNING:
        return
    if sight.state not in (VmState.OFF, VmState.SAVED):
        raise stuck(WHAT, sight)
    if cancel.is_set():
        raise _cancelled()
    _refuse_bad_versions(vm)
    vm.require_disk("start")
    if sight.state is VmState.OFF:
        importing.fit(vm, sight)
    _launch(vm, sight, cancel)
    vm.priority_problem = processes.lower_priority(vm.pids(search=True))
    if vm.priority_problem:
        log.warning("priority", why=vm.priority_problem)
    vm.remember_also(saved_by="")


def _arrived(sight: Sight) -> bool:
    return sight.state in (VmState.OFF, VmState.SAVED, VmState.RUNNING, VmState.ABSENT)


def _refuse_bad_versions(vm: Vm) -> None:
    judgement = judged(vm, slow_mode=False)
    if judgement.level is HealthLevel.UNUSABLE:
        raise DriverError(Trouble.VERSION, WHAT, judgement.sentence, judgement.fix)


def _launch(vm: Vm, before: Sight, cancel: threading.Event) -> None:
    deadline_s = time.monotonic() + vm.options.start_timeout_s
    for delay_s in (*BACKOFF_S, 0.0):
        mark = _log_mark(before)
        try:
            reply = vm.manage.call(
                "startvm", vm.uuid, "--type", "headless",
                timeout_s=max(1.0, deadline_s - time.monotonic()), cancel=cancel,
            )  # fmt: skip
        except command.CommandCancelled:
            return _cancel(vm, before, deadline_s)
        except DriverError as error:
            if error.trouble is Trouble.TIMEOUT and vm.look().state is not VmState.RUNNING:
                vm.kill()
                vm.wait(lambda now: now.state in RESTING, _SETTLE_S)
                raise
            reply = None
        after = vm.wait(lambda now: now.state is not VmState.STARTING, _SETTLE_S)
        if after.state is VmState.RUNNING:
            if reply is not None and not reply.ok:
                log.info("runs_although_refused", words=reply.words)
            return None
        if after.state is VmState.PAUSED and paused_for_full_disk(vm.log(after).tail):
            raise _full_disk(after)
        if reply is None or reply.code not in PASSING or after.state not in RESTING or not delay_s:
            raise _start_failure(vm, before, after, reply, _log_mark(after) != mark)
        log.info("start_refused_for_now", words=reply.words, again_in_s=delay_s)
        if cancel.wait(delay_s):
            raise _cancelled()
    return None


def _log_mark(sight: Sight) -> tuple[int, int, int] | None:
    if not sight.log_folder:
        return None
    try:
        facts = (Path(sight.log_folder) / "VBox.log").stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _start_failure(
    vm: Vm, before: Sight, after: Sight, reply: Reply | None, log_is_new: bool
) -> DriverError:
    words = reply.words if reply is not None else f"VirtualBox says {after.word!r}."
    cause = cause_of(reply.stderr) if reply is not None else None
    if cause is None and log_is_new:
        cause = cause_in_log(vm.log(after))
    if cause is not None and (before.has_saved_state or cause.trouble is not Trouble.SAVED_STATE):
        return _explained(vm, before, cause, words)
    if after.state not in (*RESTING, VmState.BROKEN):
        return stuck(WHAT, after, words)
    if after.state is VmState.ABSENT:
        return gone(vm.settings.name)
    if before.has_saved_state and (reply is None or reply.code in (None, parse.FAIL)):
        return DriverError(
            Trouble.SAVED_STATE,
            "The saved VM could not be restored.",
            f"{words} {_versions(vm)}".strip(),
            "Discard the saved state; the next start boots the VM cold.",
        )
    return failure(WHAT, reply) if reply is not None else stuck(WHAT, after)


def _explained(vm: Vm, before: Sight, cause: Cause, words: str) -> DriverError:
    if cause.trouble is Trouble.SAVED_STATE:
        why = f"{cause.sentence} {_versions(vm)}".strip()
        what = "The saved VM could not be restored."
        return DriverError(cause.trouble, what, f"{why} ({cause.status})", cause.fix)
    return DriverError(
        cause.trouble, WHAT, f"{cause.sentence} ({cause.status}: {words})", cause.fix
    )


def _versions(vm: Vm) -> str:
    made, now = (vm.machine.saved_by if vm.machine else ""), str(vm.version())
    if made and made != now:
        return f"It was saved by VirtualBox {made}; {now} is installed now."
    return ""


def _full_disk(sight: Sight) -> DriverError:
    return DriverError(
        Trouble.DISK_FULL,
        "VirtualBox paused the VM as soon as it had started.",
        "The disk that holds the VM is full.",
        f"Free some space at {sight.info.get('CfgFile', 'its folder')}.",
    )


def _cancelled() -> DriverError:
    return DriverError(
        Trouble.CANCELLED, "The start of the VM was given up.", "It was not wanted any more."
    )


def _cancel(vm: Vm, before: Sight, deadline_s: float) -> None:
    """End a start that is under way without losing a saved state; returns if it has succeeded.

    Killing a VM while it is restored keeps the state since 7.0 ("aborted-saved"); 6.1 would lose
    it, so there the restore is waited for.
    """
    keeps = vm.version().keeps_state_of_aborted_restore
    sight = vm.wait(lambda now: now.state is VmState.RUNNING, _CANCEL_GRACE_S)
    while time.monotonic() < deadline_s:
        if sight.state is VmState.RUNNING:
            return
        if sight.state in RESTING and not vm.pids(search=True):
            raise _cancelled()
        if sight.word in ("starting", "restoring") and (keeps or not before.has_saved_state):
            vm.kill()
        sight = vm.wait(_arrived, 0.3)
    raise stuck("The start of the VM could not be given up.", sight)
