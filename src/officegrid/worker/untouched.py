"""Has anybody changed an unpacked version since it was unpacked?

Its digest is checked when it arrives; hashing it again for each unit would cost more than small
units themselves. What is compared instead is what the file system says of each file: size, time
of the last change, mode and number. Files that were added do not count: programs leave things.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from officegrid.core.errors import UnavailableError

Facts = dict[str, list[int]]


def look(root: Path) -> Facts:
    """By relative path: size, mtime in ns, executable, inode of each file and link below `root`;
    of a folder, which changes with what is added to it, only that it is there."""
    found: Facts = {}
    for folder, folders, names in os.walk(root):
        for name in folders + names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                found[os.path.relpath(path, root)] = [0, 0, 0, 0]
                continue
            executable = int(bool(status.st_mode & 0o100))
            facts = [status.st_size, status.st_mtime_ns, executable, status.st_ino]
            found[os.path.relpath(path, root)] = facts
    return found


def remember(root: Path, note: Path) -> None:
    """Write down what is there now. Raises UnavailableError."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        draft = note.with_suffix(".draft")
        draft.write_text(json.dumps(look(root)))
        draft.replace(note)
    except OSError as error:
        raise UnavailableError(
            f"{note} cannot be written.", str(error), "Check the space of that disk."
        ) from error


def is_untouched(root: Path, note: Path) -> bool:
    """Is all that was there at `remember` there still, unchanged? False without a note."""
    try:
        before: Facts = json.loads(note.read_text())
        now = look(root)
    except (OSError, ValueError):
        return False
    return root.is_dir() and all(now.get(path) == facts for path, facts in before.items())
