"""Finding and reading the seed disk: a small volume named CIDATA with `officegrid.json` on it.

The name is that of cloud-init's NoCloud source (cloud-init documentation, "NoCloud": "a volume
labelled cidata, vfat or iso9660"); the file is ours. The disk is mounted for as long as it takes to
read one file, read-only, and nothing on it can be run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from typing import Any, NamedTuple

from officegrid.core.errors import InputError, OfficeGridError
from officegrid.guest.place import Place, make_folder

FILE = "officegrid.json"
VOLUME = "CIDATA"
_DISKS = ("sr", "vd", "sd", "xvd", "hd")
_MOST_BYTES = 64 * 2**10
_HEAD_BYTES = 32768 + 2048
# <sys/mount.h>
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_UMOUNT_DETACH = 2
_FIX = "Let the agent write the seed disk, or use `officegrid image seed`."


class Seed(NamedTuple):
    """`url` and `code` are "" where the disk has none. Never print it: the code is a secret."""

    instance_id: str
    name: str
    url: str
    code: str
    settings: dict[str, Any]


def volume(head: bytes) -> tuple[str, str]:
    """File system type and name of a volume, from its first 34816 bytes; ("", "") if unknown.

    ECMA-119 8.4: the primary descriptor is in sector 16, "CD001" at its byte 1, the volume
    identifier at 40. Microsoft, "FAT: General Overview of On-Disk Format": the label is at 43 with
    "FAT" at 54, on FAT32 at 71 with "FAT32" at 82.
    """
    if head[32769:32774] == b"CD001":
        return "iso9660", head[32808:32840].decode("ascii", "replace").strip()
    for mark_at, label_at in ((82, 71), (54, 43)):
        if head[mark_at : mark_at + 3] == b"FAT":
            return "vfat", head[label_at : label_at + 11].decode("ascii", "replace").strip()
    return "", ""


def parse(data: bytes) -> Seed:
    """The seed in the bytes of `officegrid.json`. Raises InputError, which quotes nothing."""
    try:
        told = json.loads(data)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise InputError("The seed disk cannot be used.", f"Its {FILE} is not a JSON object.", _FIX)
    found = {key: told.get(key, "") for key in ("instance_id", "name", "url", "code")}
    wrong = [key for key, value in found.items() if not isinstance(value, str | None)]
    wrong += [key for key in ("instance_id", "name") if not found[key] and key not in wrong]
    if found["code"] and not found["url"]:
        wrong.append("url")
    settings = told.get("settings") or {}
    if not isinstance(settings, dict):
        wrong.append("settings")
    if wrong:
        why = f"Its {FILE} lacks these, or has them in a wrong form: {', '.join(wrong)}."
        raise InputError("The seed disk cannot be used.", why, _FIX)
    return Seed(**{key: value or "" for key, value in found.items()}, settings=settings)


def find(place: Place) -> Seed | None:
    """The seed on the first disk that has one; None without such a disk.

    Raises InputError when there is one and it cannot be used.
    """
    trouble: OfficeGridError | None = None
    for path in _disks(place.devices):
        kind, name = _look(path)
        if name.upper() != VOLUME:
            continue
        try:
            return parse(_read(path, kind, place))
        except OfficeGridError as error:
            trouble = error
    if trouble is not None:
        raise trouble
    return None


def _disks(devices: str) -> list[str]:
    try:
        names = os.listdir(devices)
    except OSError:
        return []
    found = [name for name in names if name.startswith(_DISKS)]
    # A seed is a disc, or the last disk: those first, partitions after what they are on.
    found.sort(key=lambda name: (not name.startswith("sr"), len(name), name))
    return [os.path.join(devices, name) for name in found]


def _look(path: str) -> tuple[str, str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:  # no disc in the drive
        return "", ""
    try:
        return volume(os.pread(descriptor, _HEAD_BYTES, 0))
    except OSError:
        return "", ""
    finally:
        os.close(descriptor)


def _read(path: str, kind: str, place: Place) -> bytes:
    """The bytes of our file on the volume at `path`."""
    libc = ctypes.CDLL(None, use_errno=True)
    make_folder(place.seed, 0o700)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    target = place.seed.encode()
    if libc.mount(path.encode(), target, kind.encode(), flags, None) != 0:
        why = f"{path} ({kind}) cannot be mounted: {os.strerror(ctypes.get_errno())}."
        _forget(place)
        raise InputError("The seed disk cannot be used.", why, _FIX)
    try:
        with open(os.path.join(place.seed, FILE), "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        why = f"{FILE} on {path} cannot be read: {error.strerror or error}."
        raise InputError("The seed disk cannot be used.", why, _FIX) from None
    finally:
        libc.umount2(target, _UMOUNT_DETACH)
        _forget(place)
    if len(data) > _MOST_BYTES:
        raise InputError("The seed disk cannot be used.", f"Its {FILE} is far too long.", _FIX)
    return data


def _forget(place: Place) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(place.seed)
