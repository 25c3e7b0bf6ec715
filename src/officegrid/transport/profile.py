"""Who this machine or user is on the grid: what `officegrid join` leaves behind.

One file, `profile.json`, readable by its owner only, in `$OFFICEGRID_HOME`, else in
`$XDG_CONFIG_HOME/officegrid`, else in `~/.config/officegrid`
(Windows: `%LOCALAPPDATA%\\officegrid`). A service sets OFFICEGRID_HOME.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from officegrid.core.errors import AuthError, UnavailableError, UsageError
from officegrid.transport.private_file import write_private

FILE_NAME = "profile.json"
_JOIN_FIX = "Run `officegrid join URL --code CODE`; the grid admin gives you both."


@dataclass(frozen=True, slots=True)
class Profile:
    """Address and credentials of one coordinator. `ca_pem` is the only CA that is believed."""

    url: str
    ca_pem: str = field(repr=False)
    token: str = field(repr=False)
    machine_id: str
    role: str
    name: str


def home_folder() -> Path:
    """The folder of the profile, whether or not it exists.

    Raises UsageError when neither OFFICEGRID_HOME nor a home folder is known.
    """
    chosen = os.environ.get("OFFICEGRID_HOME")
    if chosen:
        # Absolute, because programs run with other working folders.
        return Path(chosen).expanduser().absolute()
    config = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CONFIG_HOME", "")
    if config and Path(config).is_absolute():
        return Path(config) / "officegrid"
    try:
        return Path.home() / ".config" / "officegrid"
    except RuntimeError as error:
        raise UsageError(
            "There is no place for this machine's profile.",
            "This user has no home folder.",
            "Set OFFICEGRID_HOME to a folder that only this user can read.",
        ) from error


def profile_path(folder: Path | None = None) -> Path:
    """The profile's file in `folder`, or in `home_folder()`."""
    return (folder if folder is not None else home_folder()) / FILE_NAME


def save_profile(profile: Profile, folder: Path | None = None) -> Path:
    """Write the profile so that a crash leaves the old or the new one; returns its path.

    Raises UnavailableError when the folder cannot be written.
    """
    path = profile_path(folder)
    text = json.dumps(asdict(profile), indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, text.encode())
    except OSError as error:
        raise UnavailableError(
            f"The profile cannot be written to {path}.",
            error.strerror or str(error),
            "Make the folder writable, or set OFFICEGRID_HOME to one that is.",
        ) from error
    return path


def load_profile(folder: Path | None = None) -> Profile:
    """Read the profile.

    Raises AuthError when this machine has not joined, when the file is damaged, and when other
    users of this computer can read or change it (the token in it must then count as known).
    """
    path = profile_path(folder)
    try:
        with path.open(encoding="utf-8") as file:
            _refuse_if_exposed(path, os.fstat(file.fileno()).st_mode)
            return _parse(path, file.read())
    except FileNotFoundError:
        raise AuthError(
            "This machine has not joined a grid yet.", f"There is no {path}.", _JOIN_FIX
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(
            "The profile of this machine cannot be read.",
            f"{path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}.",
            "Run as the user who joined, or join again with a new code.",
        ) from error


def _refuse_if_exposed(path: Path, mode: int) -> None:
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AuthError(
            "Other users of this computer can read this machine's token, so it is not used.",
            f"{path} has the rights {stat.S_IMODE(mode):04o}; only 0600 keeps it private.",
            f"Run `chmod 600 {path}`. If strangers use this computer, ask the grid admin to "
            "revoke this machine, and join again.",
        )


def _parse(path: Path, text: str) -> Profile:
    names = [item.name for item in fields(Profile)]
    try:
        stored = json.loads(text)
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or not all(isinstance(stored.get(n), str) for n in names):
        # The text stays out of the message and the chain: it may hold most of a token.
        raise AuthError(
            "The profile of this machine is damaged.",
            f"{path} is not a profile that `officegrid join` wrote.",
            "Join again with a new code; this overwrites it.",
        ) from None
    return Profile(**{name: stored[name] for name in names})
