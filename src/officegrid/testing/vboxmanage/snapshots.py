"""Sub-command snapshot: take, restore, restorecurrent, list; of a VM that does not run.

Words of `take` are recorded from 7.1.8; the rest follows VirtualBox's manual and its sources
(VBoxManageSnapshot.cpp, showSnapshots in VBoxManageInfo.cpp, SnapshotImpl.cpp): taking one gives
each hard disk an empty differencing disk `Snapshots/{UUID}.EXT`; restoring one brings all hardware
settings and attached media back, gives each hard disk a new differencing disk, deletes the one
before and any saved state; name, extra data and folder stay. An online snapshot is not modelled.
Faults ("snapshot take", "snapshot restore"): the common ones, and failed.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from officegrid.testing.vboxmanage.power import (
    FAILED,
    FILE_ERROR,
    INVALID_STATE,
    LOCKED,
    NOT_FOUND,
    Call,
)
from officegrid.testing.vboxmanage.store import RESTING, new_uuid, now_text
from officegrid.testing.vboxmanage.texts import VerbFailedError, snapshot_lines

_FIND = (
    '"FindMachine(bstrMachine.raw(), pMachine.asOutParam())" at line 307 of file '
    "VBoxManageSnapshot.cpp"
)
_LOCK = '"LockMachine(a->session, LockType_Shared)" at line 313 of file VBoxManageSnapshot.cpp'
_FIND_SNAPSHOT = (
    '"FindSnapshot(Bstr(a->argv[2]).raw(), pSnapshot.asOutParam())" at line 519 of file '
    "VBoxManageSnapshot.cpp"
)
_RESTORE = (
    '"RestoreSnapshot(pSnapshot, pProgress.asOutParam())" at line 542 of file '
    "VBoxManageSnapshot.cpp"
)
_SESSION = "SessionMachine, interface IMachine, callee nsISupports"
_NONE = "This machine does not have any snapshots"
_NOT_IN_SNAPSHOTS = (
    "name", "uuid", "ostype", "CfgFile", "SnapFldr", "LogFldr", "NvramFile", "extra", "state_file",
    "aborted", "changed", "snapshots", "current_snapshot",
)  # fmt: skip
"""Settings that a snapshot neither keeps nor brings back."""


def snapshot(call: Call, words: list[str]) -> None:
    uuid = call.find(words[0], _FIND)
    with call.home.locked():
        name, session = call.home.settings(uuid)["name"], call.home.session(uuid)
        state = call.home.state(uuid)
    call.common_fault(name)
    if session.get("stuck"):
        call.writer.bare_error(_LOCK)
        raise VerbFailedError
    # A shared lock: to be had beside a VM that runs, but not while a session comes or goes.
    if state not in ("running", "paused") and call.locked_by_session(uuid):
        call.writer.error(
            "The machine '{0}' is already locked by a session (or being locked or unlocked)",
            name, code=LOCKED, context=_LOCK,
        )  # fmt: skip
        raise VerbFailedError
    verbs = {"take": _take, "restore": _restore, "restorecurrent": _restore, "list": _list}
    if words[1] not in verbs:
        call.writer.error(f"Invalid parameter '{words[1]}'")
        raise VerbFailedError
    time.sleep(call.modes.delay_s("snapshot"))
    verbs[words[1]](call, uuid, state, words[1:])


def _take(call: Call, uuid: str, state: str, words: list[str]) -> None:
    if state not in ("poweroff", "aborted"):
        raise NotImplementedError("the stand-in takes snapshots of VMs that are off only")
    if call.kind == "failed":
        text = "Could not create the differencing disk (VERR_GENERAL_FAILURE)"
        call.writer.error(f"Failed to take snapshot\n{text}", code=FAILED, component=_SESSION)
        raise VerbFailedError
    with call.home.locked():
        settings = call.home.settings(uuid)
        taken = {
            "uuid": new_uuid(), "name": words[1], "taken": now_text(),
            "parent": settings.get("current_snapshot", ""), "hardware": _hardware(settings),
        }  # fmt: skip
        call.home.change(
            uuid,
            snapshots=[*settings.get("snapshots", []), taken],
            current_snapshot=taken["uuid"],
            controllers=_with_fresh_disks(settings),
        )
    call.writer.progress()
    call.writer.out(call.writer.say("Snapshot taken. UUID: {0}", taken["uuid"]))


def _hardware(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in _NOT_IN_SNAPSHOTS}
    return copy.deepcopy(kept)


def _with_fresh_disks(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The controllers with an empty differencing disk on top of each hard disk."""
    controllers: list[dict[str, Any]] = copy.deepcopy(settings["controllers"])
    for medium in _hard_disks(controllers):
        parent = medium["path"]
        fresh = new_uuid()
        path = Path(settings["SnapFldr"]) / f"{{{fresh}}}{Path(parent).suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"differences from {parent}\n".encode())
        medium.update(path=str(path), uuid=fresh, parent=parent)
    return controllers


def _hard_disks(controllers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        medium for one in controllers for medium in one["media"].values() if medium["kind"] == "hdd"
    ]


def _restore(call: Call, uuid: str, state: str, words: list[str]) -> None:
    wanted = _wanted(call, uuid, words)
    call.writer.out(
        call.writer.say("Restoring snapshot '{0}' ({1})", wanted["name"], wanted["uuid"])
    )
    if state not in RESTING:
        text = "Cannot delete the current state of the running machine (machine state: {0})"
        call.writer.error(
            text, state.title(), code=INVALID_STATE, component=_SESSION, context=_RESTORE
        )
        raise VerbFailedError
    lost = [one for one in _hard_disks(wanted["hardware"]["controllers"])
            if not Path(one["path"]).is_file()]  # fmt: skip
    if call.kind == "failed" or lost:
        where = lost[0]["path"] if lost else "of the snapshot"
        text = f"Could not open the medium '{where}'.\nVD: error VERR_FILE_NOT_FOUND opening it"
        call.writer.error(
            f"Snapshot operation failed\n{text}", code=FILE_ERROR,
            component="MediumWrap, interface IMedium",
        )  # fmt: skip
        raise VerbFailedError
    with call.home.locked():
        settings = call.home.settings(uuid)
        before = [one["path"] for one in _hard_disks(settings["controllers"]) if "parent" in one]
        before += [settings["state_file"]] if settings.get("state_file") else []
        restored = {**settings, **copy.deepcopy(wanted["hardware"])}
        restored["controllers"] = _with_fresh_disks(restored)
        restored |= {
            "current_snapshot": wanted["uuid"], "state_file": "", "aborted": False,
            "changed": wanted["taken"],
        }  # fmt: skip
        call.home.store(restored)
        call.home.forget(uuid)
    for path in before:
        Path(path).unlink(missing_ok=True)
    call.writer.progress()


def _wanted(call: Call, uuid: str, words: list[str]) -> dict[str, Any]:
    """The snapshot that is meant, by UUID or name."""
    with call.home.locked():
        settings = call.home.settings(uuid)
    known: list[dict[str, Any]] = settings.get("snapshots", [])
    if words[0] == "restorecurrent":
        target = settings.get("current_snapshot", "")
        if not known:
            call.writer.out(_NONE)
            raise VerbFailedError
    elif len(words) != 2:
        call.writer.error("Expecting snapshot name only")
        raise VerbFailedError
    else:
        target = words[1]
    for one in known:
        if target in (one["uuid"], one["name"]):
            return one
    text = "Could not find a snapshot named '{0}'" if known else _NONE
    call.writer.error(
        text, target, code=NOT_FOUND, component=_SESSION, context=_FIND_SNAPSHOT
    )  # fmt: skip
    raise VerbFailedError


def _list(call: Call, uuid: str, state: str, words: list[str]) -> None:
    with call.home.locked():
        settings = call.home.settings(uuid)
    if not settings.get("snapshots"):
        call.writer.out(_NONE)
        raise VerbFailedError
    if "--machinereadable" in words:
        call.writer.out(snapshot_lines(call.modes, settings))
        return
    for one in settings["snapshots"]:
        star = " *" if one["uuid"] == settings["current_snapshot"] else ""
        call.writer.out(f"   Name: {one['name']} (UUID: {one['uuid']}){star}")
