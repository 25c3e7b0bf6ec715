"""The processes of VirtualBox: which are ours, at what priority, and ending exactly those.

A VM's process is `VBoxHeadless --comment NAME --startvm UUID --vrde config`; on Windows there are
up to three of it (its hardening starts itself again). VBoxSVC keeps the registry of one account,
or on Linux and macOS of one VBOX_IPC_SOCKETID. A pid is only ever used after its command line
has been read again: numbers are reused.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping

import psutil

_VM_PROGRAMS = ("vboxheadless", "virtualboxvm")
_GONE = (psutil.Error, OSError, ValueError)
_LINUX = sys.platform.startswith("linux")


def _is_program(words: list[str], names: tuple[str, ...]) -> bool:
    """Is one of the first words (the program, or a script that an interpreter runs) called so?"""
    stems = (re.split(r"[/\\]", word)[-1].lower().removesuffix(".exe") for word in words[:4])
    return any(stem in names for stem in stems)


def _command_line(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except _GONE:
        return []


def _vm_of(words: list[str]) -> str | None:
    if not _is_program(words, _VM_PROGRAMS):
        return None
    for option in ("--startvm", "-startvm", "-s"):
        if option in words[:-1]:
            return words[words.index(option) + 1].lower()
    return None


def is_vm_process(pid: int, uuid: str) -> bool:
    return _vm_of(_command_line(pid)) == uuid


def vm_processes(uuid: str) -> tuple[int, ...]:
    """All processes of this VM. Reads every process of the machine: not for a poll."""
    return tuple(pid for pid, vm in _all_vms() if vm == uuid)


def _all_vms() -> Iterable[tuple[int, str]]:
    for pid in psutil.pids():
        vm = _vm_of(_command_line(pid))
        if vm is not None:
            yield pid, vm


def other_vms(uuid: str, environment: Mapping[str, str | None]) -> list[str]:
    """UUIDs of other VMs that run under the same VBoxSVC as this one would."""
    return sorted({vm for pid, vm in _all_vms() if vm != uuid and _same_registry(pid, environment)})


def service_processes(environment: Mapping[str, str | None]) -> list[int]:
    """VBoxSVC of our registry: verified by its environment, on Windows by its account."""
    return [
        pid
        for pid in psutil.pids()
        if _is_program(_command_line(pid), ("vboxsvc",)) and _same_registry(pid, environment)
    ]


def _same_registry(pid: int, environment: Mapping[str, str | None]) -> bool:
    try:
        process = psutil.Process(pid)
        if sys.platform == "win32":
            # There one VBoxSVC serves all of an account, whatever VBOX_USER_HOME says.
            return process.username() == psutil.Process().username()
        if process.uids().real != psutil.Process().uids().real:
            return False
        theirs = process.environ()
    except _GONE:
        return False
    key = "VBOX_IPC_SOCKETID"
    ours = environment[key] if key in environment else os.environ.get(key)
    return theirs.get(key, "") == (ours or "")


def end_vm_processes(uuid: str, pids: Iterable[int], timeout_s: float = 5.0) -> int:
    """Kill these if each still is the VM's; how many are gone after that."""
    doomed = [pid for pid in pids if is_vm_process(pid, uuid)]
    return _end(doomed, timeout_s, gently=False)


def end_services(pids: Iterable[int], timeout_s: float = 5.0) -> int:
    return _end(list(pids), timeout_s, gently=True)


def _end(pids: list[int], timeout_s: float, *, gently: bool) -> int:
    processes = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            process.terminate() if gently else process.kill()
            processes.append(process)
        except _GONE:
            continue
    gone, left = psutil.wait_procs(processes, timeout_s / 2)
    for process in left:
        try:
            process.kill()
        except _GONE:
            continue
    gone_late, _ = psutil.wait_procs(left, timeout_s / 2)
    return len(gone) + len(gone_late)


def lower_priority(pids: Iterable[int]) -> str:
    """Give the processes the lowest priority and read it back; "" or why it is not so."""
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if sys.platform == "win32":
                wanted = psutil.IDLE_PRIORITY_CLASS
                process.nice(wanted)
                reached = process.nice() == wanted
            else:
                # Linux keeps a priority for each thread; those of the guest's CPUs matter most.
                threads = [one.id for one in process.threads()] if _LINUX else [pid]
                for thread in threads:
                    with contextlib.suppress(ProcessLookupError):  # it has just ended
                        os.setpriority(os.PRIO_PROCESS, thread, 19)
                reached = process.nice() >= 19
        except psutil.NoSuchProcess:
            continue
        except _GONE as error:
            return f"The VM's process {pid} does not have the lowest priority: {error}."
        if not reached:
            return f"The VM's process {pid} does not have the lowest priority."
    return ""
