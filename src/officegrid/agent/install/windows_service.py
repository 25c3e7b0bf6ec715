"""The installation on Windows: a service, a Run key for the session helper, a folder of its own.

Nothing listens on the network, so no firewall rule is made. The folder below ProgramData holds
the PC's token, and everybody may read what lies in ProgramData, and make folders there: ours is
made closed (`windows_folder`), and `icacls` lets the agent's account in. Accounts are named by SID
where they are called differently in other languages (Microsoft, "Well-known SIDs"; icacls takes
`*SID`). A service that runs as LocalSystem starts the session helpers itself; for any other
account the Run key does it. Both together would start each helper twice.
"""

from __future__ import annotations

import ntpath

from officegrid.agent.install import windows_host
from officegrid.agent.install.plan import (
    Command,
    Facts,
    Join,
    MakeFolder,
    Plan,
    RegisterService,
    SetRunKey,
    Step,
    Wishes,
    WriteFile,
    settings_text,
)
from officegrid.agent.windows.service_plan import LOCAL_SYSTEM, RunKeyPlan, ServicePlan

_SYSTEM, _ADMINISTRATORS = "*S-1-5-18", "*S-1-5-32-544"


def plan(wishes: Wishes, facts: Facts, url: str | None = None) -> Plan:
    """All that an installation on Windows is."""
    account = wishes.account or LOCAL_SYSTEM
    home = ntpath.join(facts.program_data, "OfficeGrid")
    service = service_plan(facts, home, account)
    steps: list[Step] = [
        MakeFolder(home),
        Command(private_folder(home, account)),
    ]
    steps.append(
        WriteFile(
            ntpath.join(home, "agent.toml"), settings_text(wishes).encode(), editable=True
        )
    )  # fmt: skip
    if url is not None:
        steps.append(Join(url, ntpath.join(home, "profile.json")))
    named = account != LOCAL_SYSTEM
    steps += [SetRunKey(run_key(facts), wanted=named), RegisterService(service, start=facts.joined)]
    return Plan(home, account, tuple(steps), tuple(_notes(wishes, service)))


def service_plan(facts: Facts, home: str, account: str) -> ServicePlan:
    """The service's process is `windows_host`, which talks to the service manager."""
    command = (facts.python, "-P", "-m", windows_host.__name__, home)
    # As long as the agent may take to save when it is stopped; a shutdown powers off in 2 s.
    return ServicePlan(command, account)


def run_key(facts: Facts) -> RunKeyPlan:
    """The helper at each logon."""
    return RunKeyPlan(windows_host.helper_command(facts.python))


def private_folder(home: str, account: str) -> tuple[str, ...]:
    """The command that closes the folder to everybody else."""
    owners = [_SYSTEM, _ADMINISTRATORS]
    if account != LOCAL_SYSTEM:
        owners.append(account.removeprefix(".\\"))
    grants = [word for who in owners for word in ("/grant:r", f"{who}:(OI)(CI)F")]
    return ("icacls", home, "/inheritance:r", *grants)


def _notes(wishes: Wishes, service: ServicePlan) -> list[str]:
    notes = []
    if service.needs_password:
        notes.append(
            f"{service.account} needs the right to log on as a service (SeServiceLogonRight)."
        )
    if service.account == LOCAL_SYSTEM and wishes.driver in (None, "auto", "virtualbox"):
        notes.append(
            "VirtualBox 7.1 and later does not work well as LocalSystem: give --account .\\NAME."
        )
    return notes
