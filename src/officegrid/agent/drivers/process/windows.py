"""Keeps a worker's processes on Windows: one job object, suspended process by process.

The job has a name, so that an agent that was restarted finds it again. A name lives only as long
as a handle is open: the worker's first process inherits one, and the job ends with it. The job
does not kill on close: the worker outlives the agent. Limits: idle priority for every process,
committed memory of all together, a hard cap of the CPU rate, no error dialogs.

Sources: Microsoft's documentation of Job Objects (JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
JOBOBJECT_CPU_RATE_CONTROL_INFORMATION, JOBOBJECT_BASIC_PROCESS_ID_LIST). NtSuspendProcess and
NtResumeProcess are exported by ntdll but not documented; debuggers and psutil use them.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from ctypes import wintypes
from pathlib import Path
from typing import Any

import psutil

from officegrid.agent.drivers.process.keeper import (
    KeeperError,
    Limits,
    Root,
    born,
    drop_note,
    lives,
    load_note,
    store_note,
)

assert sys.platform == "win32"

JOB_ALL_ACCESS = 0x1F001F
PROCESS_SUSPEND_RESUME = 0x0800
CREATE_SUSPENDED = 0x0004
# JOBOBJECTINFOCLASS
BASIC_PROCESS_ID_LIST, EXTENDED_LIMITS, CPU_RATE = 3, 9, 15
# JOBOBJECT_BASIC_LIMIT_INFORMATION.LimitFlags
LIMIT_PRIORITY_CLASS, LIMIT_JOB_MEMORY, LIMIT_DIE_ON_EXCEPTION = 0x20, 0x200, 0x400
IDLE_PRIORITY_CLASS = 0x40
# JOBOBJECT_CPU_RATE_CONTROL_INFORMATION.ControlFlags
CPU_RATE_ENABLE, CPU_RATE_HARD_CAP = 0x1, 0x4
ERROR_MORE_DATA = 234
SETTLE_TIMEOUT_S = 5.0
FROZEN_NAME = "frozen.json"


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", wintypes.DWORD),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", wintypes.DWORD),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", wintypes.DWORD),
        ("SchedulingClass", wintypes.DWORD),
    )


class _ExtendedLimits(ctypes.Structure):
    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


class _CpuRate(ctypes.Structure):
    _fields_ = (("ControlFlags", wintypes.DWORD), ("CpuRate", wintypes.DWORD))


def _kernel32() -> Any:
    library = ctypes.WinDLL("kernel32", use_last_error=True)
    library.CreateJobObjectW.restype = wintypes.HANDLE
    library.CreateJobObjectW.argtypes = [ctypes.c_void_p, wintypes.LPCWSTR]
    library.OpenJobObjectW.restype = wintypes.HANDLE
    library.OpenJobObjectW.argtypes = [wintypes.DWORD, wintypes.BOOL, wintypes.LPCWSTR]
    library.OpenProcess.restype = wintypes.HANDLE
    library.OpenProcess.argtypes = [wintypes.DWORD, wintypes.BOOL, wintypes.DWORD]
    for name, arguments in {
        "AssignProcessToJobObject": [wintypes.HANDLE, wintypes.HANDLE],
        "SetInformationJobObject": [
            wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD,
        ],
        "QueryInformationJobObject": [
            wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD, ctypes.c_void_p,
        ],
        "TerminateJobObject": [wintypes.HANDLE, wintypes.UINT],
        "SetHandleInformation": [wintypes.HANDLE, wintypes.DWORD, wintypes.DWORD],
        "CloseHandle": [wintypes.HANDLE],
    }.items():  # fmt: skip
        function = getattr(library, name)
        function.restype, function.argtypes = wintypes.BOOL, arguments
    return library


def _ntdll() -> Any:
    library = ctypes.WinDLL("ntdll")
    for name in ("NtSuspendProcess", "NtResumeProcess"):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_long, [wintypes.HANDLE]
    return library


def job_name(name: str, folder: Path) -> str:
    """In the namespace of the agent's own session; the hash keeps two agents apart."""
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return f"Local\\officegrid-{name}-{digest}"


class Job:
    """An open job object. Raises KeeperError with the system's own words."""

    def __init__(self, handle: int) -> None:
        self._k = _kernel32()
        self.handle = handle

    @classmethod
    def make(cls, name: str) -> Job:
        """Create it, or open the one of that name."""
        handle = _kernel32().CreateJobObjectW(None, name)
        if not handle:
            raise _last_error("The job object cannot be made")
        return cls(int(handle))

    @classmethod
    def find(cls, name: str) -> Job | None:
        """Open it; None: there is none, so no process of it either."""
        handle = _kernel32().OpenJobObjectW(JOB_ALL_ACCESS, False, name)
        return cls(int(handle)) if handle else None

    def close(self) -> None:
        self._k.CloseHandle(self.handle)

    def limit(self, limits: Limits) -> bool:
        """Memory and priority, else KeeperError; False: the CPU rate cannot be capped here."""
        wanted = _ExtendedLimits()
        basic = wanted.BasicLimitInformation
        basic.LimitFlags = LIMIT_PRIORITY_CLASS | LIMIT_JOB_MEMORY | LIMIT_DIE_ON_EXCEPTION
        basic.PriorityClass = IDLE_PRIORITY_CLASS
        wanted.JobMemoryLimit = limits.memory_mb << 20
        if not self._set(EXTENDED_LIMITS, wanted):
            raise _last_error("The job object takes no limits")
        share = limits.cpus / (os.cpu_count() or 1)
        rate = _CpuRate(CPU_RATE_ENABLE | CPU_RATE_HARD_CAP, max(1, min(10_000, int(share * 1e4))))
        return share >= 1 or self._set(CPU_RATE, rate)

    def assign(self, process_handle: int) -> None:
        if not self._k.AssignProcessToJobObject(self.handle, process_handle):
            raise _last_error("The worker cannot be put into its job object")

    def pids(self) -> list[int]:
        """Every live process in the job."""
        room = 64
        while True:

            class List(ctypes.Structure):
                _fields_ = (
                    ("Assigned", wintypes.DWORD),
                    ("InList", wintypes.DWORD),
                    ("Ids", ctypes.c_size_t * room),
                )

            found = List()
            if self._k.QueryInformationJobObject(
                self.handle, BASIC_PROCESS_ID_LIST, ctypes.byref(found), ctypes.sizeof(found), None
            ):
                if found.InList >= found.Assigned or found.InList < room:
                    return [int(found.Ids[i]) for i in range(found.InList)]
            elif ctypes.get_last_error() != ERROR_MORE_DATA:
                raise _last_error("The job object does not list its processes")
            room *= 4

    def terminate(self) -> None:
        if not self._k.TerminateJobObject(self.handle, 1):
            raise _last_error("The job object cannot be ended")

    def inheritable(self) -> None:
        """A child may be given this handle."""
        self._k.SetHandleInformation(self.handle, 1, 1)

    def _set(self, kind: int, value: ctypes.Structure) -> bool:
        return bool(
            self._k.SetInformationJobObject(
                self.handle, kind, ctypes.byref(value), ctypes.sizeof(value)
            )
        )


class WindowsKeeper:
    """See `keeper.Keeper`."""

    def __init__(self, name: str, folder: Path) -> None:
        self._folder = folder
        self._job_name = job_name(name, folder)

    def weaknesses(self) -> list[str]:
        return []

    def caps_cpu(self) -> bool:
        return True

    def launch(
        self, argv: Sequence[str], env: Mapping[str, str], log: Path, limits: Limits
    ) -> None:
        with self._job(make=True) as job:
            assert job is not None
            job.limit(limits)
            job.inheritable()
            process = _spawn_suspended(argv, env, log, job.handle)
            try:
                job.assign(_handle_of(process))
                # Noted before it runs: no crash of the agent leaves a worker nobody knows.
                store_note(self._folder, Root(process.pid, born(process.pid) or ""))
                _nt("NtResumeProcess", process.pid)
            except BaseException:
                process.kill()
                raise
            finally:
                process.returncode = 0  # it is left alone on purpose

    def root_lives(self) -> bool:
        return lives(load_note(self._folder))

    def members(self) -> tuple[int, ...]:
        with self._job() as job:
            return tuple(sorted(job.pids())) if job is not None else ()

    def is_frozen(self) -> bool:
        members = set(self.members())
        return bool(members) and members <= self._noted("frozen")

    def freeze(self) -> None:
        # Windows counts suspensions, so each process is suspended once. Noted before (an agent
        # that dies here leaves nothing suspended that `thaw` does not know) and after.
        frozen = self._noted("frozen") & set(self.members())
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while left := set(self.members()) - frozen:
            self._note(frozen, meant=left)
            for pid in left:
                with suppress(KeeperError):
                    _nt("NtSuspendProcess", pid)
                    frozen.add(pid)
            self._note(frozen)
            if time.monotonic() > deadline:
                raise KeeperError(f"Not suspended in time: {sorted(left)}")

    def thaw(self) -> None:
        unsure = self._noted("meant")
        for pid in (self._noted("frozen") | unsure) & set(self.members()):
            # Once more than needed does no harm: a count of none stays none.
            for _ in range(2 if pid in unsure else 1):
                with suppress(KeeperError):
                    _nt("NtResumeProcess", pid)
        self._note(set())

    def kill(self) -> None:
        with self._job() as job:
            if job is not None:
                job.terminate()
                _until(lambda: not job.pids(), "Some processes do not end.")
        root = load_note(self._folder)
        if root is not None and lives(root):  # it was never in the job, or the job lost its name
            with suppress(psutil.NoSuchProcess):
                psutil.Process(root.pid).kill()
            _until(lambda: not lives(root), "The worker does not end.")
        (self._folder / FROZEN_NAME).unlink(missing_ok=True)
        drop_note(self._folder)

    @contextmanager
    def _job(self, *, make: bool = False) -> Iterator[Job | None]:
        job = Job.make(self._job_name) if make else Job.find(self._job_name)
        try:
            yield job
        finally:
            if job is not None:
                job.close()

    def _noted(self, kind: str) -> set[int]:
        try:
            noted = json.loads((self._folder / FROZEN_NAME).read_bytes())[kind]
            return {int(pid) for pid, birth in noted.items() if born(int(pid)) == birth}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return set()

    def _note(self, frozen: set[int], meant: AbstractSet[int] = frozenset()) -> None:
        kinds = {"frozen": frozen, "meant": meant}
        noted = {kind: {str(pid): born(pid) for pid in pids} for kind, pids in kinds.items()}
        draft = self._folder / f"{FROZEN_NAME}.new"
        draft.write_text(json.dumps(noted), encoding="utf-8")
        os.replace(draft, self._folder / FROZEN_NAME)


def _spawn_suspended(
    argv: Sequence[str], env: Mapping[str, str], log: Path, job_handle: int
) -> subprocess.Popen[bytes]:
    flags = CREATE_SUSPENDED | subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    startup = subprocess.STARTUPINFO()
    startup.lpAttributeList = {"handle_list": [job_handle]}
    with open(log, "ab") as out:
        try:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(env),
                creationflags=flags | IDLE_PRIORITY_CLASS,
                startupinfo=startup,
                close_fds=True,
            )
        except OSError as error:
            raise KeeperError(f"{argv[0]} cannot be started: {error}") from error


def _handle_of(process: subprocess.Popen[bytes]) -> int:
    return int(process._handle)  # type: ignore[attr-defined]


def _nt(function: str, pid: int) -> None:
    kernel32 = _kernel32()
    handle = kernel32.OpenProcess(PROCESS_SUSPEND_RESUME, False, pid)
    if not handle:
        raise _last_error(f"Process {pid} cannot be opened")
    try:
        status = getattr(_ntdll(), function)(handle)
    finally:
        kernel32.CloseHandle(handle)
    if status < 0:
        raise KeeperError(f"{function} of process {pid} gave {status & 0xFFFFFFFF:#010x}")


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise KeeperError(otherwise)
        time.sleep(0.005)


def _last_error(what: str) -> KeeperError:
    number = ctypes.get_last_error()
    return KeeperError(f"{what}: {ctypes.FormatError(number).strip()} (error {number})")
