"""The guest's own files, users and services, and at the end the cleaning.

`image/files/` is copied over the root. Beside the tree lie `enabled.txt`, `disabled.txt` and
`masked.txt`: names of systemd units, one a line.
"""

from __future__ import annotations

import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from officegrid.image.recipe import Recipe
from officegrid.image.run import BuildError, Runner

HOST_NAME = "gridmachine"
_LISTS = ("enabled.txt", "disabled.txt", "masked.txt")
_PROGRAMS = ("usr/bin/", "usr/sbin/", "usr/lib/officegrid/")
_FSTAB = """\
# The worker's disk is thrown away at a reset: no checks at boot, freed blocks go back to the host.
LABEL=root / ext4 rw,noatime,discard,errors=remount-ro 0 0
LABEL=GRIDBOOT /boot vfat noauto,nofail,ro,umask=0077 0 0
"""
_HOSTS = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
"""
# No password anywhere: MariaDB asks the kernel who is at the other end of the socket. The user
# has databases of its own and none of the server's tables.
_DATABASE = """\
FLUSH PRIVILEGES;
CREATE DATABASE grid CHARACTER SET utf8mb4;
CREATE USER grid@localhost IDENTIFIED VIA unix_socket;
GRANT ALL ON `grid`.* TO grid@localhost;
GRANT ALL ON `grid\\_%`.* TO grid@localhost;
"""
_LEAVINGS = (
    "tmp/*", "tmp/.[!.]*", "var/tmp/*", "run/*", "root/*", "root/.[!.]*", "var/log/*",
    "var/cache/ldconfig/aux-cache", "var/cache/man/*", "var/backups/*", "etc/*-", "etc/.pwd.lock",
    "etc/ssh/ssh_host_*", "etc/resolv.conf.*", "etc/.resolv.conf.*", "var/lib/systemd/random-seed",
    "var/lib/systemd/catalog/database", "var/lib/dbus/machine-id", "boot/*", "dev/*",
    "var/lib/chrony/*", "var/lib/dhcp/*", "var/lib/NetworkManager/*", "var/lib/officegrid/*",
)  # fmt: skip


def put_files(root: Path, recipe: Recipe) -> None:
    """Copy the tree and write what depends on the recipe. Raises BuildError."""
    with as_file(files("officegrid.image") / "files") as source:
        for path in sorted(source.rglob("*")):
            name = str(path.relative_to(source))
            if path.is_dir() or name in _LISTS or name.endswith(".pyc"):
                continue
            executable = name.startswith(_PROGRAMS) or bool(path.stat().st_mode & 0o100)
            _write(root / name, path.read_bytes(), 0o755 if executable else 0o644)
    settings = json.dumps(recipe.guest_settings(), indent=2) + "\n"
    for name, text in (
        ("etc/officegrid/guest.json", settings), ("etc/hostname", HOST_NAME + "\n"),
        ("etc/hosts", _HOSTS), ("etc/fstab", _FSTAB), ("etc/machine-id", ""),
    ):  # fmt: skip
        _write(root / name, text.encode(), 0o644)
    link(root / "etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
    link(root / "etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target")


def _write(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():
        path.unlink()
    path.write_bytes(data)
    path.chmod(mode)


def link(path: Path, target: str) -> None:
    """Make `path` a symbolic link, whatever was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def make_users(run: Runner, root: Path) -> None:
    """The worker's user, from the files' sysusers.d; its home is its own. Raises BuildError."""
    what = "The worker's user could not be made."
    run.run_in_root(root, ["systemd-sysusers"], what)
    run.run_in_root(
        root, ["install", "-d", "-m", "0700", "-o", "grid", "-g", "grid", "/var/lib/officegrid"],
        what,
    )  # fmt: skip


def make_database(run: Runner, root: Path) -> None:
    """A fresh data folder under the guest's own settings, with the database and user `grid`."""
    what = "The guest's database could not be made."
    data = root / "var/lib/mysql"
    for path in data.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run.run_in_root(
        root,
        ["mariadb-install-db", "--user=mysql", "--skip-test-db", "--force",
         "--auth-root-authentication-method=socket", "--auth-root-socket-user=root"],
        what,
    )  # fmt: skip
    run.run_in_root(
        root, ["mariadbd", "--user=mysql", "--bootstrap", "--skip-networking"], what,
        stdin=_DATABASE,
    )  # fmt: skip


def set_units(run: Runner, root: Path) -> None:
    """Enable, disable and mask services as the lists say; a unit that no package brought is left
    out with a line in the log, because the recipe may have left its package out."""
    for verb, name in (("disable", _LISTS[1]), ("enable", _LISTS[0]), ("mask", _LISTS[2])):
        units = _units(name)
        if verb != "mask":
            missing = [unit for unit in units if not _has_unit(root, unit)]
            units = [unit for unit in units if unit not in missing]
            for unit in missing:
                run.file.write(f"{verb}: there is no {unit} in this image\n".encode())
        if units:
            run.run_in_root(
                root, ["systemctl", verb, *units], f"Services could not be {verb}d: {name}."
            )


def _units(name: str) -> list[str]:
    path = files("officegrid.image") / "files" / name
    if not path.is_file():
        return []
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line]


def _has_unit(root: Path, unit: str) -> bool:
    folders = ("usr/lib/systemd/system", "etc/systemd/system", "lib/systemd/system")
    return any((root / folder / unit).exists() for folder in folders)


def run_script(run: Runner, root: Path, script: Path) -> None:
    """The company's own script, in the root, as root, with the network of this machine.

    Services that its packages bring are not started. Raises BuildError with its last lines.
    """
    try:
        text = script.read_bytes()
    except OSError as error:
        raise BuildError(
            f"The script {script} cannot be read.", f"{error.strerror or error}."
        ) from None
    inside = root / "root" / ".image-script"
    resolver, policy = root / "etc/resolv.conf", root / "usr/sbin/policy-rc.d"
    _write(inside, text, 0o700)
    _write(policy, b"#!/bin/sh\nexit 101\n", 0o755)
    kept = resolver.readlink() if resolver.is_symlink() else None
    _write(resolver, Path("/etc/resolv.conf").read_bytes(), 0o644)
    command = ["/root/.image-script"] if text.startswith(b"#!") else ["sh", "/root/.image-script"]
    try:
        run.run_in_root(
            root, command, f"The script {script.name} failed.",
            "Correct it and build again; nothing was changed outside of the draft.",
        )  # fmt: skip
    finally:
        for path in (inside, policy):
            path.unlink(missing_ok=True)
        if kept is not None:
            link(resolver, str(kept))


def clean(root: Path, leavings: tuple[str, ...]) -> None:
    """Remove what no guest needs and what no two guests may share. The kernel must be saved
    before: it lies on the boot partition."""
    for pattern in (*leavings, *_LEAVINGS):
        for path in sorted(root.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for cache in [*(root / "usr").rglob("__pycache__"), *(root / "opt").rglob("__pycache__")]:
        if not any(cache.iterdir()):
            cache.rmdir()
