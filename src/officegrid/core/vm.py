"""The vocabulary of virtual machines: states, what drivers can do, what can go wrong.

Drivers (`officegrid.agent.drivers`) translate a hypervisor's own words into these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from officegrid.core.errors import OfficeGridError


class VmState(StrEnum):
    ABSENT = "absent"
    """There is no such VM: it must be imported."""
    OFF = "off"
    """Can be booted cold."""
    SAVED = "saved"
    """No process; its memory lies on disk; start goes on from there."""
    STARTING = "starting"
    """Booting or restoring: on its way to running."""
    RUNNING = "running"
    PAUSED = "paused"
    """No CPU is used; memory still is."""
    SAVING = "saving"
    STOPPING = "stopping"
    BROKEN = "broken"
    """Needs repair: stuck, crashed in a way that start does not cure, inaccessible."""
    UNKNOWN = "unknown"
    """The hypervisor did not say. Never taken for off."""


HOLDS_MEMORY = frozenset({
    VmState.STARTING, VmState.RUNNING, VmState.PAUSED, VmState.SAVING, VmState.STOPPING,
})  # fmt: skip
"""States in which a process may hold the desk user's memory."""


@dataclass(frozen=True, slots=True)
class VmStatus:
    state: VmState
    detail: str = ""
    """The hypervisor's own word or a sentence, for people."""
    pids: tuple[int, ...] = ()
    """The processes whose CPU and memory count as ours."""
    ready: bool | None = None
    """Has the guest said that it is up? None where the driver cannot hear it."""


class HealthLevel(StrEnum):
    GOOD = "good"
    DEGRADED = "degraded"
    """Works, but slower or less well than it should; the sentence says why."""
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Health:
    """Can this driver work on this machine? The sentence is for the grid admin."""

    level: HealthLevel
    sentence: str
    fix: str = ""
    version: str = ""


class RepairStep(StrEnum):
    """Rungs of the repair ladder, mildest first."""

    RETRY = "retry"
    EMERGENCY_STOP = "emergency_stop"
    """End the VM's process, through the hypervisor or by its pid."""
    RESTART_SERVICE = "restart_service"
    """End the hypervisor's helper process that keeps the wrong state (VirtualBox: VBoxSVC)."""
    DISCARD = "discard"
    """Throw the saved state away; the next start is a cold boot."""
    REIMPORT = "reimport"
    """Make the VM anew from the image, or bring it back to just after its import."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do; the agent never asks for the rest."""

    saves: bool
    """save() frees the memory and keeps the guest's state."""
    imports: bool
    """import_image() and delete() mean something: there is an image."""
    pauses: bool = True
    cpu_cap: bool = False
    repairs: frozenset[RepairStep] = field(default_factory=lambda: frozenset({RepairStep.RETRY}))
    image_format: str = ""
    """Which file of a pushed image it takes (`wire.images.ImageFormat`); empty: none."""


class Trouble(StrEnum):
    """The closed set of what a driver may raise, for decisions; the sentences are for people."""

    MISSING = "missing"  # the hypervisor is not installed
    VERSION = "version"  # installed, but a release known not to work
    NO_VIRTUALIZATION = "no_virtualization"  # disabled in firmware or absent
    CONFLICT = "conflict"  # another hypervisor is in the way
    PERMISSION = "permission"
    IMAGE = "image"  # missing, corrupt, of another format
    NAME_TAKEN = "name_taken"  # a VM of that name is not ours
    GONE = "gone"  # the VM was deleted under us
    LOCKED = "locked"  # busy right now; the same call may succeed in a moment
    SAVED_STATE = "saved_state"  # damaged, or made by another version: discard and boot cold
    DISK_FULL = "disk_full"
    MEMORY = "memory"
    TIMEOUT = "timeout"  # the hypervisor did not answer in time; the state is unknown
    STUCK = "stuck"  # the VM or the hypervisor is in a state that no normal verb leaves
    CANCELLED = "cancelled"  # start was told to stop
    UNSUPPORTED = "unsupported"  # this driver cannot do that
    FAILED = "failed"  # anything else; the hypervisor's own text is in `why`


class DriverError(OfficeGridError):
    """What every driver verb raises. Its wire code is `driver_` and the trouble."""

    http_status = 500
    code = "driver"

    def __init__(self, trouble: Trouble, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix, code=f"driver_{trouble}")
        self.trouble = trouble
