"""Which PC this is: an id that stays for the life of its system, and is another one elsewhere.

It is mixed into the hardware of our VM (UUID, MAC address): a VM's folder that is copied to
another PC is another computer there, and its worker finds out that it is a copy.

Sources: Linux `/etc/machine-id` (machine-id(5)), Windows `MachineGuid` under
`HKLM\\SOFTWARE\\Microsoft\\Cryptography` (made by Windows Setup, and anew by Sysprep), macOS
`IOPlatformUUID` of `ioreg -rd1 -c IOPlatformExpertDevice` (ioreg(8)). Where none is to be had, a
random id beside the VM's folder. The id itself never leaves this PC: machine-id(5) asks for that,
so only a hash with our own salt does.
"""

from __future__ import annotations

import re
import secrets
import sys
import uuid
from functools import cache
from pathlib import Path

from officegrid.agent.drivers.command import CommandMissing, CommandProblem, run
from officegrid.agent.files import write_private

MACHINE_ID = Path("/etc/machine-id")
FALLBACK_FILE = "host-id"
IOREG = ("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
_IOREG_LIMIT_S = 10.0
_ID = re.compile(r"[0-9a-f]{32}")
_SALT = uuid.UUID("6f1c7f0e-5a0f-5a4b-8b39-3a1f0d0c9e57")


def vm_uuid(folder: Path, name: str) -> uuid.UUID:
    """The UUID of the VM's computer: the same for this PC, folder and name, else another one."""
    return uuid.uuid5(_SALT, f"{host_id(folder)}\0{folder}\0{name}")


def host_id(vm_folder: Path) -> str:
    """32 hexadecimal digits. "" where the system has no id and none can be kept: the VM's
    hardware then tells folders from one another, but not PCs."""
    return system_id() or _kept_id(vm_folder.parent / FALLBACK_FILE)


@cache
def system_id() -> str:
    """The system's own id as 32 hexadecimal digits, or ""."""
    if sys.platform == "win32":
        return clean(_machine_guid())
    if sys.platform == "darwin":
        return clean(platform_uuid(_ioreg()))
    try:
        return clean(MACHINE_ID.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return ""


def clean(text: str) -> str:
    """32 lower-case hexadecimal digits, or "" for what is no id: empty, "uninitialized", zeros."""
    plain = text.strip().strip("{}").replace("-", "").lower()
    return plain if _ID.fullmatch(plain) and len(set(plain)) > 1 else ""


def platform_uuid(listing: str) -> str:
    """From the line `"IOPlatformUUID" = "…"` of ioreg's listing."""
    found = re.search(r'"IOPlatformUUID"\s*=\s*"([^"]+)"', listing)
    return found[1] if found else ""


def _ioreg() -> str:
    try:
        return run(list(IOREG), timeout_s=_IOREG_LIMIT_S).stdout
    except (CommandMissing, CommandProblem):
        return ""


def _machine_guid() -> str:
    if sys.platform != "win32":
        return ""
    import winreg

    rights = winreg.KEY_QUERY_VALUE | winreg.KEY_WOW64_64KEY  # a 32-bit Python sees no value
    path = r"SOFTWARE\Microsoft\Cryptography"
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path, 0, rights) as key:
            return str(winreg.QueryValueEx(key, "MachineGuid")[0])
    except OSError:
        return ""


def _kept_id(path: Path) -> str:
    try:
        kept = clean(path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        kept = ""
    if kept:
        return kept
    made = secrets.token_hex(16)
    try:
        write_private(path, f"{made}\n".encode())
    except OSError:
        return ""
    return made
