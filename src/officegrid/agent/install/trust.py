"""Is the agent's home that lies there already one whose settings the service may obey?

Settings name programs, and the identity names the coordinator: whoever writes them is the agent.

Linux, macOS: home, settings and identity belong to root or the agent's account, and nobody else
may write them. In a folder tree (--root) only the latter is looked at: its accounts are its own.
Windows: everybody may make folders in ProgramData. So the home must be one that an installation
has made, which its list says, and belong to the administrators or the system.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from officegrid.agent.install import windows_folder
from officegrid.agent.install.doing import Machine, account_ids
from officegrid.agent.install.manifest import Manifest
from officegrid.core.errors import ConflictError, UnavailableError

_OBEYED = ("", "agent.toml", "profile.json")
"""The home itself, and the files in it that decide what the agent does."""


def refuse_foreign_home(machine: Machine, home: str, account: str, known: Manifest | None) -> None:
    """Changes nothing. Raises ConflictError, and UnavailableError for what cannot be looked at."""
    where = machine.path(home)
    try:
        if sys.platform == "win32":
            windows_folder.refuse_foreign(where, ours=_has_made(known, home))
        else:
            for name in _OBEYED:
                _refuse_foreign(where / name, where, _trusted(machine, account, known), account)
    except OSError as error:
        raise UnavailableError(
            f"Who may write to {where} cannot be seen.", f"{error.strerror or error}.",
            "Run this as root, or as administrator.",
        ) from None  # fmt: skip


def _has_made(known: Manifest | None, home: str) -> bool:
    return known is not None and known.has("folder", home)


def _trusted(machine: Machine, account: str, known: Manifest | None) -> set[int] | None:
    """User ids; None: any."""
    if machine.offline:
        return None
    names = {account, known.account if known else account}
    return {0} | {ids[0] for ids in map(account_ids, names) if ids}


def _refuse_foreign(path: Path, home: Path, trusted: set[int] | None, account: str) -> None:
    try:
        about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if trusted is not None and about.st_uid not in trusted:
        why = f"It belongs to the user {about.st_uid}, who could tell the agent what to do."
    elif about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"{stat.S_IMODE(about.st_mode):04o}"
        why = f"Others may write to it (mode {mode}), and tell the agent what to do."
    else:
        return
    raise ConflictError(
        f"{path} is there already, and the agent may not trust it.",
        why,
        f"Move {home} away. Or look at all that is in it, and if it is yours: "
        f"chown -R {account} {home}; chmod -R go-w {home}. Then run this again.",
    )
