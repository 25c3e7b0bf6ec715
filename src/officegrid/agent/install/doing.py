"""The single steps of an installation on a real machine, and how each is taken back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from officegrid.agent.install import windows_folder
from officegrid.agent.install.manifest import cannot
from officegrid.agent.install.plan import (
    Command,
    Join,
    MakeAccount,
    MakeFolder,
    MakeLink,
    RegisterService,
    SetRunKey,
    Step,
    WriteFile,
)
from officegrid.agent.windows import control, runkey
from officegrid.core.errors import UnavailableError

_COMMAND_TIMEOUT_S = 180.0
"""`systemctl stop` waits until the agent has saved its VM."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the steps are done: on this machine, or in a folder tree (`root`)."""

    manifest: Path
    root: Path | None = None

    @property
    def offline(self) -> bool:
        return self.root is not None

    def path(self, text: str) -> Path:
        """Where a path of the plan is for us."""
        if self.root is None:
            return Path(text)
        pure = PureWindowsPath(text) if "\\" in text else PurePosixPath(text)
        return self.root.joinpath(*pure.parts[1:])

    def content(self, text: str) -> bytes | None:
        """Of a file; None: there is none. Raises UnavailableError."""
        path = self.path(text)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(
                f"{path} cannot be read.", f"{error.strerror or error}.",
                "Run this as root, or as administrator.",
            ) from None  # fmt: skip

    def has_account(self, name: str) -> bool:
        return account_ids(name) is not None

    def remove_tree(self, text: str) -> None:
        path = self.path(text)
        try:
            if path.exists():
                shutil.rmtree(path)
        except OSError as error:
            raise cannot(path, error) from None

    def remove_manifest(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.manifest.unlink()
        with contextlib.suppress(OSError):  # not empty: something else lives there
            self.manifest.parent.rmdir()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def account_ids(name: str) -> tuple[int, int] | None:
    """User and group id; None: no such account here."""
    if sys.platform == "win32":
        return None
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def account_command(step: MakeAccount) -> tuple[str, ...]:
    return (
        "useradd", "--system", "--user-group", "--home-dir", step.home, "--no-create-home",
        "--shell", "/usr/sbin/nologin", "--comment", "Office Grid agent", step.name,
    )  # fmt: skip


def run(words: tuple[str, ...]) -> None:
    """Raises UnavailableError with what the program said."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=_COMMAND_TIMEOUT_S, check=False, encoding="utf-8", errors="replace",
        )  # fmt: skip
        said, failed = done.stdout.strip()[-500:], done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        said, failed = str(error), True
    if failed:
        raise UnavailableError(
            f"This command failed: {' '.join(words)}",
            said or "It said nothing.",
            "Mend what it says, then run this again: it goes on where it stopped.",
        )


def succeeds(words: tuple[str, ...]) -> bool:
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def do(
    machine: Machine, step: Step, join: Callable[[Join, Path], None], password: str | None
) -> list[str]:
    """Carry one step out; returns sentences about what could not be had in full."""
    try:
        match step:
            case MakeFolder():
                path = machine.path(step.path)
                _make_folder(path, step)
            case WriteFile():
                _write(machine.path(step.path), step)
            case MakeLink():
                path = machine.path(step.path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                path.symlink_to(step.target)
            case MakeAccount():
                run(account_command(step))
            case Join():
                path = machine.path(step.profile)
                join(step, path.parent)
                _give(path, step.owner)
            case Command():
                run(step.words)
            case RegisterService():
                return _register(step, password)
            case SetRunKey() if step.wanted:
                runkey.write(step.value)
            case SetRunKey():
                runkey.remove(step.value.value_name)
    except OSError as error:
        raise cannot(getattr(step, "path", type(step).__name__), error) from None
    return []


def _make_folder(path: Path, step: MakeFolder) -> None:
    if sys.platform == "win32":
        windows_folder.make(path)
        return
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(step.mode)
    _give(path, step.owner)


def _write(path: Path, step: WriteFile) -> None:
    """Replaced whole, with its mode and owner from the first moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(step.content)
            file.flush()
            os.fsync(file.fileno())
        _give(draft, step.owner)
        draft.chmod(step.mode)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _give(path: Path, owner: str) -> None:
    """To the account, where there is one and we may: systemd's StateDirectory does it later."""
    ids = account_ids(owner) if owner else None
    if sys.platform == "win32" or ids is None or os.geteuid() != 0:
        return
    os.chown(path, *ids, follow_symlinks=False)


def service_change(step: RegisterService) -> list[str]:
    """What a registration would change; empty: nothing."""
    plan, facts = step.service, control.look(step.service.name) if _on_windows() else None
    if facts is not None and facts.image_path == plan.image_path and facts.automatic:
        same_account = facts.account.lower() == plan.account.lower()
        as_wanted = facts.state == "running" or not step.start
        if same_account and as_wanted and not step.restart:
            return []
    return plan.lines()


def run_key_value(name: str) -> str | None:
    return runkey.read(name)


def _register(step: RegisterService, password: str | None) -> list[str]:
    stop_service(step.service.name)
    missing = control.install(step.service, password)
    if step.start:
        control.start(step.service.name)
    return [f"This Windows could not store {what}." for what in missing]


def stop_service(name: str) -> None:
    """Until it has ended, so with its VM saved. Nothing when there is no such service."""
    if _on_windows() and control.look(name) is not None:
        control.stop(name, _COMMAND_TIMEOUT_S)


def removal(machine: Machine, entry: dict[str, Any], *, purge: bool) -> str:
    """What taking back an entry does, in a line; empty: nothing to say."""
    kind = entry["kind"]
    if kind in ("folder", "identity", "settings", "account") and not purge:
        what = entry.get("name") or machine.path(entry["path"])
        return f"keep    {what}: {kind}; --purge takes it too"
    match kind:
        case "file" | "link":
            path = machine.path(entry["path"])
            if _changed(machine, entry):
                return f"keep    {path}: somebody has changed it"
            return f"remove  {path}" if os.path.lexists(path) else ""
        case "account":
            return f"remove  the account {entry['name']}"
        case "service":
            return f"remove  the service {entry['name']}"
        case "run_key":
            return f"remove  the value {entry['name']} from the registry's Run key"
    return ""


def remove(machine: Machine, entry: dict[str, Any], *, purge: bool) -> bool:
    """Take an entry back; False: it is kept, and stays in the manifest."""
    try:
        match entry["kind"]:
            case "file" | "link":
                path = machine.path(entry["path"])
                if not _changed(machine, entry):
                    path.unlink(missing_ok=True)
            case "folder" | "identity" | "settings":
                return purge  # gone already, with all that was in it
            case "account" if not purge:
                return False
            case "account":
                if account_ids(entry["name"]) is not None:
                    run(("userdel", entry["name"]))
            case "service":
                if _on_windows() and control.look(entry["name"]) is not None:
                    control.uninstall(entry["name"])
            case "run_key":
                runkey.remove(entry["name"])
    except OSError as error:
        raise cannot(machine.path(entry.get("path", "")), error) from None
    return True


def _changed(machine: Machine, entry: dict[str, Any]) -> bool:
    path = machine.path(entry["path"])
    if entry["kind"] == "link":
        return path.is_symlink() and str(path.readlink()) != entry["target"]
    content = machine.content(entry["path"])
    return content is not None and digest(content) != entry["sha256"]


def _on_windows() -> bool:
    return sys.platform == "win32"
