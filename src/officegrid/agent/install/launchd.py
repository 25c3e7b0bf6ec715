"""The installation on macOS: a LaunchDaemon. Source: launchd.plist(5).

There is no LaunchAgent: on a Mac the agent reads idle time, lock and display assertions itself,
and `officegrid agent session` has nothing to do there. Not tried on a real Mac.
"""

from __future__ import annotations

import plistlib

from officegrid.agent.install.plan import (
    Command,
    Facts,
    Join,
    MakeFolder,
    Plan,
    Step,
    Wishes,
    WriteFile,
    settings_text,
)

LABEL = "org.officegrid.agent"
HOME = "/var/db/officegrid"
PLIST = f"/Library/LaunchDaemons/{LABEL}.plist"
SOCKET = "/var/run/officegrid/agent.sock"
LOG = "/var/log/officegrid-agent.log"


def plan(wishes: Wishes, facts: Facts, url: str | None = None) -> Plan:
    """All that an installation on macOS is. The agent runs as root unless an account is named."""
    account = wishes.account or "root"
    steps: list[Step] = [
        MakeFolder(HOME, 0o700, account),
        WriteFile(f"{HOME}/agent.toml", settings_text(wishes).encode(), 0o600, account, True),
        WriteFile(PLIST, daemon_plist(facts, account)),
    ]
    if url is not None:
        steps.append(Join(url, f"{HOME}/profile.json", account))
    if facts.joined and not facts.offline:
        target = f"system/{LABEL}"
        steps.append(
            Command(
                ("launchctl", "bootstrap", "system", PLIST),
                ("launchctl", "print", target),
                ("launchctl", "bootout", target),
            )
        )
    notes = ["Installing on macOS was not tried on a real Mac."]
    notes.append(f"For `officegrid agent status`: export OFFICEGRID_AGENT_SOCKET={SOCKET}")
    return Plan(HOME, account, tuple(steps), tuple(notes))


def daemon_plist(facts: Facts, account: str = "root") -> bytes:
    """The property list, as XML."""
    words = [facts.python, "-P", "-m", "officegrid", "agent", "run", "--log-file", LOG]
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": words,
            "EnvironmentVariables": {"OFFICEGRID_HOME": HOME, "OFFICEGRID_AGENT_SOCKET": SOCKET},
            "UserName": account,
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": 2,
            # launchd must not end the VM with the agent: the next agent finds it again.
            "AbandonProcessGroup": True,
            "ExitTimeOut": 120,
            "ProcessType": "Standard",
            "Umask": 0o077,
            "WorkingDirectory": HOME,
        },
        sort_keys=False,
    )
