"""Calls of `virsh`, what it says, and what its errors mean.

Formats (virsh(1), in the C locale, with --quiet): `domstate --reason` prints "running (booted)";
`dominfo` prints lines "Managed save:   yes". Failures print "error: …" lines on stderr and exit
with 1. The reason after "shut off" is history, not state: it stays "saved" after the saved state
has been removed, so only "Managed save" is believed.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

from officegrid.agent.drivers.command import (
    CommandMissing,
    CommandTimeout,
    Finished,
    run,
)
from officegrid.core.vm import DriverError, Trouble, VmState

LOOK_TIMEOUT_S = 8.0

_STATES = {
    "running": VmState.RUNNING,
    "idle": VmState.RUNNING,
    "paused": VmState.PAUSED,
    "in shutdown": VmState.STOPPING,
    "crashed": VmState.BROKEN,
    "pmsuspended": VmState.BROKEN,
}
_REASONS = {
    "paused (saving)": VmState.SAVING,
    "paused (starting up)": VmState.STARTING,
    "paused (shutting down)": VmState.STOPPING,
}

_TROUBLES: tuple[tuple[str, Trouble, str], ...] = (
    (r"No space left on device|enospc", Trouble.DISK_FULL, "Free space on the disk that is named."),
    (r"failed to get domain|Domain not found|no domain with matching", Trouble.GONE,
     "Import the VM again."),
    (r"already exists with uuid", Trouble.NAME_TAKEN, "Give our VM another name in agent.toml."),
    (r"authentication (failed|unavailable)|Permission denied|polkit|access denied",
     Trouble.PERMISSION,
     "Let the agent's user use libvirt (group libvirt), and QEMU's user read the files."),
    (r"cannot allocate memory|cannot set up guest memory", Trouble.MEMORY,
     "Give the VM less memory."),
    (r"Failed to get \"\w+\" lock|cannot acquire state change lock|timed out during operation",
     Trouble.LOCKED, "Try again in a moment."),
    (r"does not support virtualization type kvm|Could not access KVM|invalid argument: .* kvm",
     Trouble.NO_VIRTUALIZATION, 'Set accelerator = "tcg", or enable virtualisation.'),
    (r"Cannot access (storage|backing) file|Could not open '|cannot (open|access) file",
     Trouble.IMAGE, "Import the VM again."),
    (r"failed to connect|Failed to connect socket|End of file while reading|Connection reset",
     Trouble.FAILED, "Start libvirt (systemctl start libvirtd)."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Domain:
    """What libvirt says of our domain."""

    state: VmState
    detail: str


class Virsh:
    """One connection, by one short-lived command each time. Raises DriverError."""

    def __init__(self, program: str, uri: str) -> None:
        self._argv = (program, "--quiet", "--connect", uri)
        self.uri = uri

    def call(
        self, *words: str, timeout_s: float, cancel: threading.Event | None = None
    ) -> Finished:
        """Run one sub-command, whatever its exit code. MISSING, TIMEOUT; CommandCancelled."""
        try:
            return run([*self._argv, *words], timeout_s=timeout_s, cancel=cancel)
        except CommandMissing as error:
            raise DriverError(
                Trouble.MISSING,
                "The command virsh of libvirt is not there.",
                str(error),
                "Install libvirt-clients and libvirt-daemon-system.",
            ) from error
        except CommandTimeout as error:
            raise DriverError(
                Trouble.TIMEOUT,
                f"libvirt has not done {words[0]!r} within {timeout_s:g} s.",
                error.stderr.strip() or "It says nothing.",
                "See whether libvirtd hangs; restart it (its VMs run on).",
            ) from error

    def do(
        self,
        *words: str,
        timeout_s: float,
        what: str,
        done: str = "",
        cancel: threading.Event | None = None,
    ) -> str:
        """Run one; a failure becomes the DriverError that its text means, unless that says that
        the goal is reached already (`done`, a regular expression). Returns stdout."""
        finished = self.call(*words, timeout_s=timeout_s, cancel=cancel)
        if finished.exit_code and not (done and re.search(done, finished.stderr)):
            raise failure(what, finished)
        return finished.stdout

    def look(self, uuid: str) -> Domain:
        """State of the domain: ABSENT, OFF, SAVED, … In one command, so of one moment."""
        finished = self.call(f"domstate {uuid} --reason; dominfo {uuid}", timeout_s=LOOK_TIMEOUT_S)
        if is_absent(finished):
            return Domain(VmState.ABSENT, "libvirt does not know it")
        if finished.exit_code:
            raise failure("libvirt does not tell the state of the VM.", finished)
        return parse_look(finished.stdout)


def parse_look(text: str) -> Domain:
    """From the output of `domstate --reason` followed by `dominfo`."""
    lines = text.strip().splitlines()
    said = lines[0].strip() if lines else ""
    word = said.partition(" (")[0]
    if word == "shut off":
        saved = re.search(r"^Managed save:\s+yes\s*$", text, re.MULTILINE)
        return Domain(VmState.SAVED if saved else VmState.OFF, said)
    state = _REASONS.get(said) or _STATES.get(word, VmState.UNKNOWN)
    return Domain(state, said)


def is_absent(finished: Finished) -> bool:
    return bool(finished.exit_code) and "failed to get domain" in finished.stderr


def failure(what: str, finished: Finished) -> DriverError:
    """The DriverError that virsh's own words mean."""
    said = explain(finished)
    for pattern, trouble, fix in _TROUBLES:
        if re.search(pattern, said, re.IGNORECASE):
            return DriverError(trouble, what, said, fix)
    return DriverError(
        Trouble.FAILED, what, said, "See the log of libvirt (journalctl -u libvirtd)."
    )


def explain(finished: Finished) -> str:
    """virsh's error lines as one text, without the word error."""
    lines = [line.removeprefix("error: ").strip() for line in finished.stderr.splitlines()]
    said = " ".join(line for line in lines if line)
    return said or f"virsh ended with exit code {finished.exit_code} and said nothing."
