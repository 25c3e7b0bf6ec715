"""Is the image sealed? No password, no key, no identity, nothing of the building machine.

`problems(root)` looks at a tree; the build fails when it finds anything. What is checked is what
a thief of the image could use, and what two clones must not share.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

_EMPTY_FOLDERS = ("tmp", "var/tmp", "root", "run", "home", "var/lib/officegrid", "boot", "dev")
_MUST_NOT_EXIST = {
    "var/lib/systemd/random-seed": "clones would share their random numbers",
    "var/lib/dbus/machine-id": "it is an identity, and belongs to one machine",
    "etc/ssh/sshd_config": "a log-in server is installed, and nothing may listen",
    "etc/apt/auth.conf": "it holds passwords of package mirrors",
    "var/lib/officegrid-guest": "it is what a guest remembers of its seed",
    "root/.ssh": "it lets somebody log in",
}
_PRIVATE = re.compile(rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY( BLOCK)?-----\s*[A-Za-z0-9+/=:\-\s,]{64}")
_PASSWORD_URL = re.compile(rb"https?://[^/\s:@\"']+:[^/\s:@\"']+@")
_LOOK_BYTES = 262_144
_LOOK_IN = ("etc", "opt", "srv", "home", "root", "usr/local", "usr/share", "usr/lib", "var")


def problems(root: Path) -> list[str]:
    """One sentence for each thing that must not be in an image; empty when it is sealed."""
    return [
        *_accounts(root), *_identity(root), *_folders(root), *_logs(root), *_secrets(root),
    ]  # fmt: skip


def _accounts(root: Path) -> Iterator[str]:
    path = root / "etc/shadow"
    if not path.exists():
        yield "etc/shadow is missing: accounts may have no password at all."
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        user, _, rest = line.partition(":")
        password = rest.partition(":")[0]
        if not password.startswith(("!", "*")):
            word = "an empty password" if not password else "a password"
            yield f"etc/shadow: the account {user} has {word}."
        elif len(password.strip("!*")) > 1:
            yield f"etc/shadow: the locked account {user} still has a password."
    for line in (root / "etc/passwd").read_text(encoding="utf-8").splitlines():
        fields = line.split(":")
        if len(fields) > 1 and fields[1] != "x":
            yield f"etc/passwd: the account {fields[0]} does not use etc/shadow."
        if len(fields) > 2 and fields[2] == "0" and fields[0] != "root":
            yield f"etc/passwd: {fields[0]} is a second root."


def _identity(root: Path) -> Iterator[str]:
    path = root / "etc/machine-id"
    if not path.is_file() or path.read_bytes().strip() not in (b"",):
        yield "etc/machine-id must be there and empty: every clone makes its own."
    for name, why in _MUST_NOT_EXIST.items():
        if os.path.lexists(root / name):
            yield f"{name} must not be in an image: {why}."
    for path in sorted((root / "etc/ssh").glob("ssh_host_*")):
        yield f"{path.relative_to(root)} is a host key: clones would share it."
    for path in sorted(root.glob("etc/apt/auth.conf.d/*")):
        yield f"{path.relative_to(root)} holds passwords of package mirrors."


def _folders(root: Path) -> Iterator[str]:
    for name in _EMPTY_FOLDERS:
        folder = root / name
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                yield f"{path.relative_to(root)} is left over: {name} must be empty."


def _logs(root: Path) -> Iterator[str]:
    for folder in ("var/log", "var/lib/apt/lists"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file():
                yield f"{path.relative_to(root)} is left over from the build."


def _secrets(root: Path) -> Iterator[str]:
    for start in _LOOK_IN:
        for folder, _, names in os.walk(root / start):
            for name in sorted(names):
                path = Path(folder, name)
                mark = _secret(path)
                if mark:
                    yield f"{path.relative_to(root)} {mark}."


def _secret(path: Path) -> str:
    """What is wrong with the file, "" if nothing."""
    if path.suffix in (".py", ".pyc", ".so", ".pm", ".c", ".h"):
        return ""  # programs that know how a key looks
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > 50 * _LOOK_BYTES:
        return ""
    with path.open("rb") as file:
        data = file.read(_LOOK_BYTES)
    if _PRIVATE.search(data):
        return "holds a private key"
    if path.suffix in (".p12", ".pfx", ".jks", ".kdbx"):
        return "is a store of keys"
    if path.name in (".netrc", ".pgpass", ".my.cnf", "authorized_keys", "id_rsa", "id_ed25519"):
        return "lets somebody log in"
    in_settings = "etc" in path.parts and path.suffix in ("", ".conf", ".list", ".sources", ".repo")
    if in_settings and _PASSWORD_URL.search(data):
        return "holds an address with a password"
    return ""
