"""Carries a plan out, shows what it would change, and takes an installation back.

    changes(machine, plan, manifest)        what is to be done now, as texts; nothing is touched
    install(machine, plan, …)               does it; a second time there is nothing to do
    uninstall(machine, manifest, …)         backwards, by the manifest

Everything raises OfficeGridError with a sentence. An installation that breaks off is completed by
installing again, or taken back by uninstalling.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from officegrid.agent.install import doing, manifest
from officegrid.agent.install.doing import Machine
from officegrid.agent.install.manifest import Manifest
from officegrid.agent.install.plan import (
    Command,
    Join,
    MakeAccount,
    MakeFolder,
    MakeLink,
    Plan,
    RegisterService,
    SetRunKey,
    Step,
    Wishes,
    WriteFile,
)
from officegrid.core.errors import ConflictError

Say = Callable[[str], None]
JoinNow = Callable[[Join, Path], None]
"""Joins the grid and writes the profile to this folder."""


def changes(machine: Machine, plan: Plan, known: Manifest | None) -> list[tuple[Step, str]]:
    """Steps that are not done yet, each with a text that shows exactly what it changes.

    Raises ConflictError where something is in the way that is not ours.
    """
    found: list[tuple[Step, str]] = []
    # The first time, after a broken one and for another account, commands run whether or not a
    # file changed.
    unsure = known is None or not known.complete or known.account != plan.account
    for step in plan.steps:
        text = _change(machine, step, known, changed=bool(found) or unsure)
        if text:
            found.append((step, text))
    return found


def install(
    machine: Machine,
    plan: Plan,
    known: Manifest | None,
    *,
    version: str,
    wishes: Wishes,
    join: JoinNow,
    password: str | None = None,
    say: Say = print,
) -> bool:
    """Do what `changes` finds; False: there was nothing to do."""
    todo = changes(machine, plan, known)
    fresh = Manifest(version, plan.home, plan.account, wishes=asdict(wishes))
    if known is not None:
        fresh.made = list(known.made)
    same = known is not None and known.complete and known.version == version
    if not todo and same and known is not None and known.wishes == _as_json(fresh.wishes):
        return False
    manifest.write(machine.manifest, fresh)
    for step, text in todo:
        say(text.splitlines()[0])
        for entry in _entries(machine, step):
            fresh.remember(entry)
        manifest.write(machine.manifest, fresh)
        for sentence in doing.do(machine, step, join, password):
            say(f"  {sentence}")
    fresh.complete = True
    manifest.write(machine.manifest, fresh)
    return True


def _as_json(wishes: dict[str, object]) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in wishes.items()}


def kept_by_hand(machine: Machine, plan: Plan, known: Manifest | None) -> list[str]:
    """Files that would be written, had nobody changed them since."""
    found = []
    for step in plan.steps:
        if isinstance(step, WriteFile) and step.editable:
            present = machine.content(step.path)
            if present not in (None, step.content) and not _is_ours(step, present, known):
                found.append(step.path)
    return found


def removals(machine: Machine, known: Manifest, *, purge: bool) -> list[str]:
    """What `uninstall` would do, a line each."""
    lines = [f"run     {' '.join(e['undo'])}" for e in known.made if e["kind"] == "command"]
    lines += [f"delete  the VM of the agent, and {known.home} with all in it"] if purge else []
    for entry in reversed(known.made):
        line = doing.removal(machine, entry, purge=purge)
        lines += [line] if line else []
    return lines + [f"run     {' '.join(e['undo'])}" for e in _last_commands(known)]


def uninstall(
    machine: Machine,
    known: Manifest,
    *,
    purge: bool,
    delete_vm: Callable[[], None],
    say: Say = print,
) -> None:
    """Stop the agent, which saves the VM; then remove what was made. With `purge` the VM, the
    identity on the grid, the agent's folder and its account go too."""
    known.complete = False
    manifest.write(machine.manifest, known)
    for entry in [e for e in known.made if e["kind"] == "command"]:
        _undo(machine, known, entry, say)
    for entry in [e for e in known.made if e["kind"] == "service"]:
        doing.stop_service(entry["name"])
    if purge:
        say(f"delete  the VM of the agent, and {known.home} with all in it")
        delete_vm()
        machine.remove_tree(known.home)
    last = _last_commands(known)
    for entry in [e for e in reversed(known.made) if e not in last]:
        line = doing.removal(machine, entry, purge=purge)
        if line:
            say(line)
        if doing.remove(machine, entry, purge=purge):
            known.forget(entry)
            manifest.write(machine.manifest, known)
    for entry in last:
        _undo(machine, known, entry, say)
    if not known.made:
        machine.remove_manifest()


def _last_commands(known: Manifest) -> list[dict[str, Any]]:
    return [entry for entry in known.made if entry["kind"] == "last_command"]


def _undo(machine: Machine, known: Manifest, entry: dict[str, Any], say: Say) -> None:
    if not machine.offline:
        say(f"run     {' '.join(entry['undo'])}")
        doing.run(tuple(entry["undo"]))
    known.forget(entry)
    manifest.write(machine.manifest, known)


def _change(machine: Machine, step: Step, known: Manifest | None, *, changed: bool) -> str:
    match step:
        case WriteFile():
            return _file_change(machine, step, known)
        case MakeFolder():
            where = machine.path(step.path)
            owner = f", owner {step.owner}" if step.owner else ""
            return "" if where.is_dir() else f"folder  {where} (mode {step.mode:04o}{owner})"
        case MakeLink():
            where = machine.path(step.path)
            if where.is_symlink() and str(where.readlink()) == step.target:
                return ""
            return f"link    {where} -> {step.target}"
        case MakeAccount():
            there = machine.has_account(step.name)
            command = " ".join(doing.account_command(step))
            return "" if there else f"account {step.name}: {command}"
        case Join():
            profile = machine.path(step.profile)
            there = profile.exists()
            if there and not step.anew:
                return ""
            what = "a new identity" if there else "identity"
            return f"join    {step.url}, {what} in {profile}"
        case Command():
            wanted = not doing.succeeds(step.check) if step.check else changed
            return f"run     {' '.join(step.words)}" if wanted or changed else ""
        case RegisterService():
            lines = doing.service_change(step)
            return "\n".join(lines)
        case SetRunKey():
            name = step.value.value_name
            present = doing.run_key_value(name)
            if not step.wanted:
                gone = f"remove  the value {name} from the registry's Run key"
                return gone if present is not None else ""
            return "" if present == step.value.value else "\n".join(step.value.lines())


def _file_change(machine: Machine, step: WriteFile, known: Manifest | None) -> str:
    present, where = machine.content(step.path), machine.path(step.path)
    if present == step.content:
        return ""
    owner = f", owner {step.owner}" if step.owner else ""
    new = step.content.decode("utf-8").splitlines()
    if present is None:
        head = f"file    {where} (mode {step.mode:04o}{owner})"
        return "\n".join([head, *(f"    {line}" for line in new)])
    if not _is_ours(step, present, known):
        if step.editable:
            return ""
        raise ConflictError(
            f"{where} is there already, and not as we wrote it.",
            "Somebody made or changed it, and an installation would overwrite that.",
            "Move it away, then run this again. For changes of your own to the service use "
            "`systemctl edit`.",
        )
    old = present.decode("utf-8", "replace").splitlines()
    return "\n".join(
        [f"change  {where}", *difflib.unified_diff(old, new, "now", "then", lineterm="")]
    )


def _is_ours(step: WriteFile, present: bytes | None, known: Manifest | None) -> bool:
    if known is None or present is None:
        return False
    return known.digest_of(step.path) == doing.digest(present)


def _entries(machine: Machine, step: Step) -> list[dict[str, object]]:
    """What the manifest says of a step that is about to be done."""
    match step:
        case WriteFile():
            # Settings stay with the VM: they say which driver must delete it one day.
            kind = "settings" if step.editable else "file"
            return [{"kind": kind, "path": step.path, "sha256": doing.digest(step.content)}]
        case MakeFolder():
            return [{"kind": "folder", "path": step.path}]
        case MakeLink():
            return [{"kind": "link", "path": step.path, "target": step.target}]
        case MakeAccount():
            return [{"kind": "account", "name": step.name}]
        case Join():
            return [{"kind": "identity", "path": step.profile}]
        case Command():
            undone = (("command", step.undo), ("last_command", step.undo_last))
            return [
                {"kind": kind, "name": " ".join(words), "undo": list(words)}
                for kind, words in undone if words
            ]  # fmt: skip
        case RegisterService():
            return [{"kind": "service", "name": step.service.name}]
        case SetRunKey():
            name = step.value.value_name
            return [{"kind": "run_key", "name": name}] if step.wanted else []
