"""Getting a whole file or folder onto the disk before something says that it is there.

A file system may keep the name of a new folder and lose what is in its files when the power goes;
in a VM that is killed for its desk user the power goes often.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from officegrid.core.errors import UnavailableError

_LEFT_OVER = re.compile(r"[0-9a-f]{12}\.part")


def make_durable(folder: Path) -> None:
    """Returns once all files of `folder` are on the disk. Raises OSError.

    One call for the whole file system where there is one: program folders have thousands of
    files, and waiting for each by itself takes minutes on a spinning disk.
    """
    if hasattr(os, "sync"):
        os.sync()
        return
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb+") as file:
                os.fsync(file.fileno())


@contextmanager
def placing(target: Path) -> Iterator[Path]:
    """A free name beside `target` to write to; renamed to it at the end, durably.

    On any error the file under that name is removed and `target` is as it was. What an earlier
    process left when it was killed is removed first, so a target has one writer at a time.
    OSErrors come out as UnavailableError.
    """
    start = f".{target.name[:100]}."
    temporary = target.with_name(f"{start}{secrets.token_hex(6)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in os.listdir(target.parent):
            if name.startswith(start) and _LEFT_OVER.fullmatch(name, len(start)):
                target.with_name(name).unlink(missing_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """The names in `folder` are on the disk. Raises OSError."""
    if os.name == "nt":  # Windows has no handles on folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> UnavailableError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return UnavailableError(
        f"{path} cannot be written: no space is left." if full else f"{path} cannot be written.",
        f"The system says: {error.strerror or error}. What was there before is untouched.",
        "Free space on that disk." if full else "Check the disk and the permissions of its folder.",
    )
