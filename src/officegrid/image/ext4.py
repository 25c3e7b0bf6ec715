"""Writes a tree into an ext4 file system with e2fsprogs alone: no mount, no loop device.

`mke2fs -d` would do nearly the same, but takes names in the order in which the building machine's
file system happens to list them, and the times at which the tree was made. Here a sorted list of
debugfs(8) commands decides both: equal trees give equal bytes. Every time stamp becomes the
build's epoch (E2FSPROGS_FAKE_TIME), because nothing in a guest needs the others.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from officegrid.image.run import BuildError, Runner

LABEL = "root"
_ROOT_INODE = "<2>"
_COPIED_ATTRIBUTE = "security.capability"
# What newer e2fsprogs switch on by themselves and the oldest supported kernel does not know.
_FEATURES = "^metadata_csum_seed,^orphan_file"


def fixed_uuid(*parts: str) -> str:
    """An identifier that depends on its arguments alone."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "https://officegrid.invalid/" + "/".join(parts)))


def commands(root: Path, scratch: Path) -> Iterator[str]:
    """debugfs commands that copy the tree, in the order of its names. Of extended attributes only
    file capabilities are copied.

    `scratch`: folder for values that debugfs reads from files. Raises BuildError for what cannot
    be copied: sockets, devices, names that no debugfs command can hold.
    """
    seen: dict[tuple[int, int], list[str]] = {}
    yield from _owner(_ROOT_INODE, root.lstat(), 0o755)
    for folder, names, files in os.walk(root):
        names.sort()
        inside = "/" + os.path.relpath(folder, root) if Path(folder) != root else "/"
        inside = os.path.normpath(inside)
        yield f"cd {_quoted(inside)}"
        for name in sorted([*names, *files]):
            path = os.path.join(folder, name)
            yield from _entry(path, name, os.path.join(inside, name), seen, scratch)


def _entry(
    path: str, name: str, full: str, seen: dict[tuple[int, int], list[str]], scratch: Path
) -> Iterator[str]:
    status, quoted = os.lstat(path), _quoted(name)
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        yield f"mkdir {quoted}"
        yield from _owner(quoted, status, 0o755)
        return
    if stat.S_ISLNK(mode):
        yield f"symlink {quoted} {_quoted(os.readlink(path))}"
        yield from _owner(quoted, status, 0o777)
        return
    if not stat.S_ISREG(mode):
        raise BuildError(
            f"{full} in the image's root is neither a file, a folder nor a link.",
            "Devices, sockets and pipes are made by a running system.",
            "Remove it at the end of your script.",
        )
    key = (status.st_dev, status.st_ino)
    if status.st_nlink > 1 and key in seen:
        seen[key].append(full)
        yield f"ln {_quoted(seen[key][0])} {quoted}"
        yield f"sif {quoted} links_count {len(seen[key])}"
        return
    seen[key] = [full]
    yield f"write {_quoted(path)} {quoted}"
    yield from _owner(quoted, status, -1)
    for attribute in os.listxattr(path, follow_symlinks=False):
        if attribute == _COPIED_ATTRIBUTE:
            value = scratch / f"attribute-{len(seen)}"
            value.write_bytes(os.getxattr(path, attribute))
            yield f"ea_set -f {_quoted(str(value))} {quoted} {_COPIED_ATTRIBUTE}"


def _owner(quoted: str, status: os.stat_result, given_mode: int) -> Iterator[str]:
    """Fields that differ from what debugfs gives a new entry: root, and `given_mode`."""
    if stat.S_IMODE(status.st_mode) != given_mode:
        yield f"sif {quoted} mode 0{status.st_mode:o}"
    if status.st_uid:
        yield f"sif {quoted} uid {status.st_uid}"
    if status.st_gid:
        yield f"sif {quoted} gid {status.st_gid}"


def _quoted(name: str) -> str:
    if any(character in name for character in '"\n\r\0'):
        raise BuildError(
            f"{name!r} in the image's root has a name that cannot be copied.",
            "It holds a quotation mark or a line break.",
            "Remove or rename it at the end of your script.",
        )
    return f'"{name}"'


def write(run: Runner, root: Path, disk: Path, offset: int, size: int, name: str) -> None:
    """Make the file system at byte `offset` of `disk`, `size` bytes long, and fill it.

    Raises BuildError, also when the tree does not fit.
    """
    identifier = fixed_uuid(name, "root")
    scratch = disk.parent / "ext4"
    scratch.mkdir()
    what = "The guest's file system could not be made."
    run.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", LABEL, "-m", "0", "-U", identifier,
         "-E", f"offset={offset},hash_seed={identifier},lazy_itable_init=1,nodiscard",
         "-O", _FEATURES, str(disk), f"{size // 1024}k"],
        what,
    )  # fmt: skip
    script = scratch / "commands"
    with script.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in commands(root, scratch))
    where = f"{disk}?offset={offset}"
    mark = run.file.tell()
    run.run(["debugfs", "-w", "-f", str(script), where], what)
    _check_said(run, mark)
    run.run(
        ["e2fsck", "-fn", where], "The guest's file system is damaged: a fault of this program."
    )


def _check_said(run: Runner, mark: int) -> None:
    """debugfs ends with 0 whatever happens; all but its banner on stderr is an error."""
    with run.log.open("rb") as log:
        log.seek(mark)
        lines = log.read().decode(errors="replace").splitlines()
    wrong = [line for line in lines if line and not line.startswith(("$ ", "debugfs 1."))]
    if wrong:
        full = any("no free space" in line.lower() or "Could not alloc" in line for line in wrong)
        raise BuildError(
            "The guest's files could not be copied into its file system.",
            "debugfs said: " + "; ".join(wrong[:3]),
            "The disk is too small for them: give a larger --disk." if full else "",
        )
