"""What must be done as the agent's own account, with its rights and its view of hypervisors:

    python -m officegrid.agent.install.as_account check HOME     sentences about what is missing
    python -m officegrid.agent.install.as_account delete HOME    the VM and every file of it

Sentences go to stdout as a JSON list; an error is told on stderr, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from officegrid.agent.config import AgentConfig, load_config
from officegrid.agent.files import Folders
from officegrid.agent.install.doing import account_ids
from officegrid.agent.registry import choose
from officegrid.agent.watch import vm_settings
from officegrid.core.errors import OfficeGridError, UnavailableError
from officegrid.core.vm import DriverError, HealthLevel, Trouble

_TIMEOUT_S = 180.0
_PASSED_ON = (
    # where programs and packages are, and which language they speak
    "PATH", "PATHEXT", "PYTHONPATH", "LANG", "LANGUAGE", "LC_ALL", "TZ", "TMPDIR",
    # Windows: without these neither Python nor a hypervisor's program starts
    "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "TEMP", "TMP", "USERPROFILE", "APPDATA",
    "LOCALAPPDATA", "PROGRAMDATA", "ALLUSERSPROFILE", "PROGRAMFILES", "PROGRAMFILES(X86)",
    "PROGRAMW6432", "COMMONPROGRAMFILES", "PSMODULEPATH", "NUMBER_OF_PROCESSORS",
    "PROCESSOR_ARCHITECTURE", "COMPUTERNAME", "USERNAME", "USERDOMAIN", "VBOX_MSI_INSTALL_PATH",
    "VBOX_INSTALL_PATH",
)  # fmt: skip


class AccountError(UnavailableError):
    """The account cannot run this Python at all."""


def run_as(
    account: str, verb: str, home: Path, groups: tuple[str, ...] = (), python: str = sys.executable
) -> list[str]:
    """The sentences. Raises AccountError, and UnavailableError with what `delete` said."""
    command = [python, "-P", "-m", __name__, verb, str(home)]
    # Not the administrator's whole environment: it may hold join codes and passwords.
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # HOME, because libvirt and VirtualBox keep things there; root's own is closed to others.
    environment |= {"OFFICEGRID_HOME": str(home), "HOME": str(home)}
    ids = None if account in ("root", "") else account_ids(account)
    more = {} if ids is None else {"user": ids[0], "group": ids[1], "extra_groups": groups}
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, cwd=home,
            check=False, encoding="utf-8", errors="replace", env=environment, **more,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _cannot_run(account, python, str(error)) from None
    try:
        if done.returncode != 0:
            raise ValueError
        return [str(sentence) for sentence in json.loads(done.stdout)]
    except ValueError:
        said = done.stderr.strip()[-500:]
        if verb == "delete" and said.startswith("{"):
            told = json.loads(said.splitlines()[-1])
            raise UnavailableError(told["what"], told["why"], told["fix"]) from None
        raise _cannot_run(account, python, said) from None


def _cannot_run(account: str, python: str, why: str) -> AccountError:
    return AccountError(
        f"The account {account or 'of the agent'} cannot run {python}.",
        why,
        "Install officegrid where every account may read it, such as /opt/officegrid.",
    )


def check(home: Path) -> list[str]:
    """What the agent will lack: a sentence for each. Raises UsageError for wrong settings."""
    config = load_config(Folders(home).config)
    found, image = [], config.vm.image
    if image is not None and not os.access(image, os.R_OK):
        found.append(f"The image {image} cannot be read by the agent's account.")
    return found + hypervisor(config, home)


def hypervisor(config: AgentConfig, home: Path) -> list[str]:
    """Why no VM can be run now; empty: one can."""
    choice = choose(config.vm.driver, vm_settings(config, Folders(home)))
    if choice.health.level is HealthLevel.UNUSABLE:
        return [f"{choice.health.sentence} {choice.health.fix}".strip()]
    return []


def delete(home: Path) -> list[str]:
    """Remove the VM with everything of it. Raises OfficeGridError."""
    config = load_config(Folders(home).config)
    choice = choose(config.vm.driver, vm_settings(config, Folders(home)))
    try:
        choice.driver.delete()
    except DriverError as error:
        # Without its hypervisor no VM can run; its files go with the agent's folder.
        if error.trouble is not Trouble.MISSING:
            raise
    return []


def main(arguments: list[str]) -> int:
    """Exit code."""
    verb, home = arguments
    try:
        print(json.dumps({"check": check, "delete": delete}[verb](Path(home))))
    except OfficeGridError as error:
        told = {"what": error.what, "why": error.why, "fix": error.fix}
        print(json.dumps(told), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
