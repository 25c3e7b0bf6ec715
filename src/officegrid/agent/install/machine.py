"""What is so on this machine, and the plan that fits its system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path, PurePath

from officegrid.agent.install import launchd, systemd, windows_service
from officegrid.agent.install.doing import Machine
from officegrid.agent.install.plan import Facts, Plan, Wishes, with_new_identity
from officegrid.core.errors import ForbiddenError, NotFoundError, UsageError


def this_machine(root: Path | None) -> Machine:
    """Here, or in the folder tree `root`."""
    if sys.platform == "win32":
        files = os.environ.get("PROGRAMFILES", r"C:\Program Files")
        return Machine(Path(files) / "OfficeGrid" / "install.json", None)
    place = Path("/etc/officegrid/install.json")
    return Machine(root / place.relative_to("/") if root else place, root)


def home(machine: Machine) -> Path:
    """The installed agent's home on this system."""
    if sys.platform == "win32":
        return Path(_program_data()) / "OfficeGrid"
    return machine.path(launchd.HOME if sys.platform == "darwin" else systemd.HOME)


def look(machine: Machine, *, joining: bool) -> Facts:
    """Changes nothing."""
    try:
        joined = (home(machine) / "profile.json").exists()
    except OSError:  # not root: only a dry run comes here
        joined = False
    return Facts(
        python=sys.executable,
        groups=_groups(machine),
        systemd_version=_systemd_version(),
        offline=machine.offline,
        program_data=_program_data(),
        joined=joined or joining,
    )


def make_plan(wishes: Wishes, facts: Facts, url: str | None, *, anew: bool = False) -> Plan:
    """For the system that this runs on. Raises UsageError where there is none."""
    plan = _plan(wishes, facts, url)
    return with_new_identity(plan) if anew else plan


def _plan(wishes: Wishes, facts: Facts, url: str | None) -> Plan:
    if sys.platform == "win32":
        return windows_service.plan(wishes, facts, url)
    if sys.platform == "darwin":
        return launchd.plan(wishes, facts, url)
    if not facts.offline and not Path("/run/systemd/system").exists():
        raise UsageError(
            "The agent cannot be installed as a service here.",
            "This PC was not started with systemd.",
            "Start `officegrid agent run` in your own way, or install into a tree with --root.",
        )
    return systemd.plan(wishes, facts, url)


def refuse_without_rights(machine: Machine) -> None:
    """Raises ForbiddenError unless we may change the system."""
    if machine.offline:
        return
    if sys.platform == "win32":
        from officegrid.agent.windows import accounts

        if not accounts.is_elevated():
            raise ForbiddenError(
                "Installing needs an administrator.",
                "This terminal has no administrator's rights.",
                "Open one with 'Run as administrator'. --dry-run works without.",
            )
    elif os.geteuid() != 0:
        raise ForbiddenError(
            "Installing needs root.",
            "It makes an account and a service of the system.",
            "Run it with sudo. --dry-run works without, and so does --root with a folder of yours.",
        )


def refuse_missing_image(machine: Machine, wishes: Wishes) -> None:
    """Raises NotFoundError, UsageError."""
    if wishes.image is None:
        return
    # A Windows path too: it is a plan for this system.
    if not PurePath(wishes.image).is_absolute():
        raise UsageError(
            f"The image {wishes.image!r} is not a full path.",
            "The service does not run in this folder.",
            "Give the full path to --image.",
        )
    if not machine.offline and not Path(wishes.image).is_file():
        raise NotFoundError(
            f"There is no image {wishes.image}.",
            "The agent makes its VM from it.",
            "Copy it there first, or correct --image.",
        )


def refuse_missing_account(machine: Machine, account: str) -> None:
    """An account that is named must exist; ours is made. Raises NotFoundError."""
    made_by_us = account == systemd.ACCOUNT
    if sys.platform == "win32" or machine.offline or made_by_us or machine.has_account(account):
        return
    raise NotFoundError(
        f"There is no account {account!r} on this PC.",
        fix="Make it first, or leave --account out: then one is made.",
    )


def exposed_python(python: str) -> str:
    """A sentence when others than the system may change the program; empty: all well."""
    if sys.platform == "win32":
        users = os.environ.get("SYSTEMDRIVE", "C:") + "\\users\\"
        if not python.lower().startswith(users.lower()):
            return ""
    else:
        path = Path(python).absolute()
        folders = {path.parent, path.resolve(), *path.parents, *path.resolve().parents}
        if not any(_is_open(folder) for folder in folders):
            return ""
    return (
        f"{python} can be changed by others than the system's administrators, who could so become "
        "the agent. Install officegrid into a folder of the system's own, such as /opt/officegrid "
        r"or C:\Program Files\OfficeGrid, and run this from there."
    )


def _is_open(path: Path) -> bool:
    try:
        about = path.stat()
    except OSError:
        return False
    sticky = bool(about.st_mode & 0o1000)
    return about.st_uid != 0 or (bool(about.st_mode & 0o022) and not sticky)


def _program_data() -> str:
    return os.environ.get("PROGRAMDATA", r"C:\ProgramData")


def _groups(machine: Machine) -> tuple[str, ...]:
    if sys.platform == "win32":
        return ()
    if machine.offline:
        listed = machine.content("/etc/group")
        if listed is None:  # a package's tree: what every system with systemd has
            return ("input", "kvm")
        return tuple(line.partition(":")[0] for line in listed.decode().splitlines() if line)
    import grp

    return tuple(sorted(entry.gr_name for entry in grp.getgrall()))


def _systemd_version() -> int:
    if not sys.platform.startswith("linux"):
        return 0
    try:
        done = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else 0
