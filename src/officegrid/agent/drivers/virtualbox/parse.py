"""What VBoxManage prints, read into plain values. No I/O here.

Formats: VBoxManage manual, `showvminfo --machinereadable`, `list vms`, `list hostinfo`,
`list extpacks`, `getextradata`; error blocks as VirtualBox's own glue prints them. They hold for
6.1 and 7.x. Texts may be in any language since 7.0: only keys, numbers and hex codes are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from officegrid.core.vm import VmState

OBJECT_NOT_FOUND = 0x80BB0001
INVALID_VM_STATE = 0x80BB0002
FILE_ERROR = 0x80BB0004
IPRT_ERROR = 0x80BB0005
INVALID_OBJECT_STATE = 0x80BB0007  # locked by a session, or just being locked or unlocked
HOST_ERROR = 0x80BB0008
OBJECT_IN_USE = 0x80BB000C
FAIL = 0x80004005  # E_FAIL on Windows, NS_ERROR_FAILURE elsewhere
ACCESS_DENIED = 0x80070005
SERVER_EXEC_FAILURE = 0x80080005
SERVER_UNAVAILABLE = 0x800706BA
REGISTRY_CLASS = 0x80040154

_VM_STATES: Mapping[str, VmState] = {
    "poweroff": VmState.OFF,
    "teleported": VmState.OFF,
    "aborted": VmState.OFF,
    "saved": VmState.SAVED,
    "aborted-saved": VmState.SAVED,
    "starting": VmState.STARTING,
    "restoring": VmState.STARTING,
    "teleportingin": VmState.STARTING,
    "running": VmState.RUNNING,
    "livesnapshotting": VmState.RUNNING,
    "onlinesnapshotting": VmState.RUNNING,
    "deletingsnapshotlive": VmState.RUNNING,
    "teleporting": VmState.RUNNING,
    "paused": VmState.PAUSED,
    "teleportingpausedvm": VmState.PAUSED,
    "deletingsnapshotlivepaused": VmState.PAUSED,
    "saving": VmState.SAVING,
    "stopping": VmState.STOPPING,
    "gurumeditation": VmState.BROKEN,
    "snapshotting": VmState.UNKNOWN,
    "restoringsnapshot": VmState.UNKNOWN,
    "deletingsnapshot": VmState.UNKNOWN,
    "settingup": VmState.UNKNOWN,
    "unknown": VmState.UNKNOWN,
}
"""All values of VMState that 6.1 and 7.x print. What works on a VM without running it (snapshots)
is UNKNOWN: somebody does that by hand, and it ends by itself."""

VM_WORDS = frozenset(_VM_STATES)
HAS_SAVED_STATE = frozenset({"saved", "aborted-saved"})
INACCESSIBLE = "<inaccessible>"

_INFO_LINE = re.compile(r'^("?)(?P<key>[^=]+?)\1=(?:"(?P<text>.*)"|(?P<number>-?\d+))\s*$')
_LISTED = re.compile(r'^"(?P<name>.*)" \{(?P<uuid>[0-9a-fA-F-]{36})\}\s*$')
_ERROR_LINE = re.compile(r"^VBoxManage[.a-zA-Z]*: error:\s*(?P<text>.*)$")
_CODE = re.compile(r"\(0[xX](?P<hex>[0-9a-fA-F]{8})\)")
_STATUS = re.compile(r"\bV(?:ERR|INF|WRN)_[A-Z0-9_]+")


def vm_state(word: str) -> VmState:
    """The state behind a VMState word; UNKNOWN for words of releases to come."""
    return _VM_STATES.get(word, VmState.UNKNOWN)


def machine_readable(output: str) -> dict[str, str]:
    """`showvminfo --machinereadable` as a mapping, keys without their quotes, values unescaped.

    7.x escapes `"` and `\\` with a backslash; 6.1 prints many raw, Windows paths among them, so
    only these two are unescaped and any other backslash stays.
    """
    found: dict[str, str] = {}
    for line in output.splitlines():
        match = _INFO_LINE.match(line)
        if match is None:
            continue  # VRDEClients==0, VideoMode="720,400,0"@0,0 1
        text = match["text"]
        plain = match["number"] if text is None else re.sub(r'\\(["\\])', r"\1", text)
        found[match["key"]] = plain
    return found


def listed_vms(text: str) -> dict[str, str]:
    """`list vms` or `list runningvms`: UUID (lower case) to name; "<inaccessible>" stays so."""
    rows = (_LISTED.match(line) for line in text.splitlines())
    return {row["uuid"].lower(): row["name"] for row in rows if row is not None}


def colon_fields(text: str) -> dict[str, str]:
    """`list hostinfo`, `list systemproperties`: the name before the first colon to the rest."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name not in fields:
            fields[name.strip()] = value.strip()
    return fields


def extension_packs(text: str) -> list[str]:
    """`list extpacks`: the names of the installed packs."""
    names = re.findall(r"(?m)^Pack no\.\s*\d+:\s*(.+?)\s*$", text)
    return [str(name) for name in names]


def extra_value(text: str) -> str | None:
    """`getextradata` and `guestproperty get`: `Value: x`; None for `No value set!`."""
    match = re.search(r"(?m)^Value:[ \t]?(.*?)\s*$", text)
    return match[1] if match else None


@dataclass(frozen=True, slots=True)
class ErrorBlock:
    """What VBoxManage complained about, in any language."""

    code: int | None
    """The first COM result code; some complaints have none ("… is not currently running")."""
    text: str
    """Its own words, without prefixes and without the Details and Context lines."""
    statuses: tuple[str, ...]
    """VERR_… names in it."""


def error_block(text: str) -> ErrorBlock | None:
    """The complaint in the output; None if there is none, whatever the exit code was.

    Several complaints of one call are separated by dashes: the first code counts, it is the
    cause. A line `Details: code …` follows the text, or `Code … (extended info not available)`
    stands for it.
    """
    said: list[str] = []
    for line in text.splitlines():
        match = _ERROR_LINE.match(line)
        if match is not None:
            said.append(match["text"].strip())
    if not said:
        return None
    codes = [int(found["hex"], 16) for line in said for found in _CODE.finditer(line)]
    # A Details line carries a code in brackets, a Context line ends in "of file X.cpp".
    words = [
        line
        for index, line in enumerate(said)
        if index == 0 or not (_CODE.search(line) or re.search(r"\.cpp\s*$", line))
    ]
    statuses = tuple(dict.fromkeys(_STATUS.findall(text)))
    return ErrorBlock(codes[0] if codes else None, " ".join(dict.fromkeys(words)), statuses)
