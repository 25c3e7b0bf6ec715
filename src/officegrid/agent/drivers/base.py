"""The driver interface: how an agent handles a worker VM, whatever runs it.

One driver object handles one VM. Verbs block until the work is done or raise DriverError
(`core.vm.Trouble` is the closed set); the agent calls them from one thread at a time, `state`
and `detect` from any. No verb may hang: each ends within its own time limit (TIMEOUT).
Only `stop` and `repair(EMERGENCY_STOP)` may also be called beside a verb that hangs, and must not
wait for it: the desk user does.

What every driver promises (the conformance suite `officegrid.testing.driver_conformance` checks):
- `state` never raises; what cannot be told is UNKNOWN, with the reason in `detail`.
- a verb whose goal is already reached does nothing: pause when paused, stop when off, discard
  without a saved state, delete when absent.
- `start` from SAVED goes on where the guest was; the saved state is dropped only once the guest
  runs. A saved state that cannot be used raises SAVED_STATE and stays until `discard`.
- `start` returns as soon as the guest's CPUs run (not when it has booted). When `cancel` is set
  meanwhile, it ends soon with CANCELLED and leaves OFF or SAVED (nothing lost), or it has started.
- `pause` returns when the guest uses no CPU any more, within milliseconds where possible.
- `save`, from RUNNING or PAUSED, returns when the process is gone and the state is durable. If it
  fails, nothing half-written is left that `start` would take for a saved state.
- `stop` powers off at once: nothing is kept, no saved state is left.
- the VM survives the agent: a new driver object for the same settings finds it as it is.
- nothing that is not ours (other VMs, other files) is ever touched.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from officegrid.core.vm import Capabilities, Health, RepairStep, VmStatus


@dataclass(frozen=True, slots=True)
class VmSettings:
    """What a driver needs to know about its VM. `options` are the driver's own (see its module)."""

    name: str
    folder: Path
    """Ours alone: overlays, saved states, logs, sockets. Made by the agent, mode 0700."""
    image: Path | None = None
    memory_mb: int = 2048
    cpus: int = 1
    cpu_cap_percent: int = 100
    """Of the CPUs the VM has; 100: no cap."""
    seed_folder: Path | None = None
    """What the guest is told at its first start (see agent.seed): files for a `process` worker."""
    seed_iso: Path | None = None
    """The same as an ISO 9660 image labelled CIDATA, to be attached read-only."""
    options: dict[str, Any] = field(default_factory=dict)


class Sweeper(Protocol):
    """What a driver may offer beside its verbs; the agent asks for each by name."""

    def sweep(self, keep_name: str) -> list[str]:
        """Remove VMs that this agent has made and that are not the one of this name, running or
        not; a sentence for each. What does not bear the driver's mark is never touched. Called
        while our VM is not in memory. Raises DriverError."""

    def disk_bytes(self) -> int:
        """What the VM takes on the disk outside `VmSettings.folder`."""


class Resetter(Protocol):
    """What a driver may offer where making the VM from its image takes minutes; the agent asks
    for it by name."""

    def reset(self) -> None:
        """For all that anybody sees, `delete`: nothing is left of what the guest has written, and
        `state` is ABSENT. But the next `import_image` from the same image takes seconds. Used
        instead of `delete` where the image is to stay the same. Raises as `delete`."""


class Driver(Protocol):
    """See the module."""

    name: str

    def capabilities(self) -> Capabilities: ...

    def detect(self) -> Health:
        """Can it work on this machine? Looks, changes nothing, never raises."""

    def state(self) -> VmStatus: ...

    def import_image(self) -> None:
        """Make the VM from `settings.image`. IMAGE, NAME_TAKEN, DISK_FULL, FAILED."""

    def start(self, cancel: threading.Event) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def save(self) -> None: ...

    def stop(self) -> None: ...

    def discard(self) -> None: ...

    def delete(self) -> None:
        """Remove the VM and every file of it, running or not."""

    def repair(self, step: RepairStep) -> None:
        """One rung of the ladder, one of `capabilities().repairs`. Raises DriverError if it did
        not help."""
