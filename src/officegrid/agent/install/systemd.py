"""The installation on Linux: an account, a systemd service, an autostart entry for the helper.

Sources: systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.kill(5), sysusers.d(5);
Desktop Entry Specification 1.5 and Desktop Application Autostart Specification 0.5.

The agent runs as an account of its own, not as root: it starts programs that run other people's
code. It needs the group `input` (the quickest sensor reads /dev/input) and, for QEMU and libvirt,
`kvm`; LimitNICE lets it lift a VM that it lowered before, so that giving the PC back is quick.
It runs before ordinary programs (Nice=-5) with those drivers that lower every thread of what they
start. What an agent starts is born with its priority, and VirtualBox's processes are not lowered
thread by thread: with `virtualbox`, or `auto` which may choose it, the agent is an ordinary one.
The helper is an autostart entry and not a user service, because only some desktops start
graphical-session.target, and all those in docs/sensors.md follow the autostart rules.
"""

from __future__ import annotations

from officegrid.agent.install.plan import (
    Command,
    Facts,
    Join,
    MakeAccount,
    MakeFolder,
    MakeLink,
    Plan,
    Step,
    Wishes,
    WriteFile,
    settings_text,
)

ACCOUNT = "officegrid"
HOME = "/var/lib/officegrid"
SERVICE = "officegrid-agent.service"
UNIT = f"/etc/systemd/system/{SERVICE}"
WANTED_BY = f"/etc/systemd/system/multi-user.target.wants/{SERVICE}"
SYSUSERS = "/usr/lib/sysusers.d/officegrid.conf"
AUTOSTART = "/etc/xdg/autostart/officegrid-session.desktop"

_SETUID_DRIVERS = ("auto", "virtualbox")
"""VirtualBox's programs gain rights by setuid, which most hardening of systemd would forbid."""
_LOWERING_DRIVERS = ("qemu", "libvirt", "process")
"""They lower each thread of the VM or worker, whatever priority it was born with."""

_UNIT_HEAD = """\
# Written by `officegrid agent install`. Change it with: systemctl edit officegrid-agent
[Unit]
Description=Office Grid agent: one worker VM while nobody uses this PC
After=network-online.target dbus.service systemd-logind.service
Wants=network-online.target
# Until this PC has joined there is nothing to do; afterwards never give up.
ConditionPathExists={home}/profile.json
StartLimitIntervalSec=0

[Service]
Type=exec
"""

_UNIT_BODY = """\
Environment={environment}
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=2
# Only the agent itself is ended, never the VM beside it. A stop (SIGTERM) lets the agent save the
# VM; a restart ends the agent alone, and the next one finds the VM and goes on watching it.
KillMode=process
RestartKillSignal=SIGKILL
# The agent saves for up to 90 s, and then powers off.
TimeoutStopSec=120
# A VM that the kernel ends for lack of memory is the agent's business, no reason to end the agent.
OOMPolicy=continue
RuntimeDirectory=officegrid
RuntimeDirectoryMode=0755
StateDirectory=officegrid
StateDirectoryMode=0700
UMask=0077
# The agent must get the CPU just when the PC is busiest. It lowers the VM, not itself, and may
# lift the VM back to 0 (not above) for the moment of giving the PC back.
Nice={nice}
IOSchedulingClass=best-effort
LimitNICE=+0
# No PrivateTmp: X servers are found in /tmp/.X11-unix. No PrivateDevices, ProtectClock or
# DeviceAllow: /dev/kvm and /dev/input are needed. No MemoryDenyWriteExecute: QEMU's emulation
# makes code.
ProtectSystem=full
ProtectHome=read-only
"""

_UNIT_HARDENING = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
"""

_UNIT_TAIL = """
[Install]
WantedBy=multi-user.target
"""


def plan(wishes: Wishes, facts: Facts, url: str | None = None) -> Plan:
    """All that an installation on Linux is."""
    account = wishes.account or ACCOUNT
    folders = [MakeFolder(HOME, 0o700, account)]
    steps: list[Step] = []
    if account == ACCOUNT:
        users = f'u {ACCOUNT} - "Office Grid agent" {HOME} /usr/sbin/nologin\n'
        # Into a tree: the account is made there at its first boot, or by the package manager.
        made = WriteFile(SYSUSERS, users.encode()) if facts.offline else MakeAccount(ACCOUNT, HOME)
        steps.append(made)
    steps += [
        *folders,
        WriteFile(f"{HOME}/agent.toml", settings_text(wishes).encode(), 0o600, account, True),
        WriteFile(AUTOSTART, desktop_entry(facts).encode()),
        WriteFile(UNIT, unit_text(wishes, facts).encode()),
    ]
    if url is not None:
        steps.append(Join(url, f"{HOME}/profile.json", account))
    if facts.offline:
        steps.append(MakeLink(WANTED_BY, UNIT))
    else:
        steps += _commands(facts)
    return Plan(HOME, account, tuple(steps), tuple(_notes(wishes, facts, account)))


def _commands(facts: Facts) -> list[Step]:
    reread = ("systemctl", "daemon-reload")
    enabled = ("systemctl", "is-enabled", "--quiet", SERVICE)
    commands: list[Step] = [
        # Has no check of its own: it is run after a change of the unit only.
        Command(reread, undo_last=reread),
        Command(
            ("systemctl", "enable", SERVICE), enabled, ("systemctl", "disable", "--now", SERVICE)
        ),
    ]
    if facts.joined:
        active = ("systemctl", "is-active", "--quiet", SERVICE)
        # Not `restart`, which leaves the VM running: with other settings it must be saved first.
        commands.append(Command(("systemctl", "stop", SERVICE)))
        commands.append(Command(("systemctl", "start", SERVICE), active))
    return commands


def _notes(wishes: Wishes, facts: Facts, account: str) -> list[str]:
    notes = []
    if "input" not in facts.groups and account != "root":
        notes.append(
            "There is no group 'input' here: only desktops with the session helper can be read."
        )
    capped = wishes.cpu_cap_percent is not None and wishes.cpu_cap_percent < 100
    if capped and wishes.driver in ("auto", "qemu", None) and account != "root":
        notes.append("QEMU's CPU cap needs --account root: another account may make no CPU group.")
    if facts.offline:
        notes.append(f"The tree gets no copy of Python: {facts.python} must be there when it runs.")
    return notes


def unit_text(wishes: Wishes, facts: Facts) -> str:
    """The service."""
    driver, account = wishes.driver or "auto", wishes.account or ACCOUNT
    lines = [_UNIT_HEAD.format(home=HOME)]
    if account != "root":
        wanted = ("input",) if driver in ("process", "virtualbox") else ("input", "kvm")
        groups = " ".join(name for name in wanted if name in facts.groups)
        lines.append(f"User={account}\n")
        lines += [f"SupplementaryGroups={groups}\n"] if groups else []
    command = " ".join(map(quoted, (facts.python, "-P", "-m", "officegrid", "agent", "run")))
    environment = quoted(f"OFFICEGRID_HOME={HOME}")
    nice = -5 if driver in _LOWERING_DRIVERS else 0
    lines.append(_UNIT_BODY.format(environment=environment, command=command, nice=nice))
    if account != "root" and driver not in _SETUID_DRIVERS:
        lines.append(_UNIT_HARDENING)
    if driver == "process":
        lines.append("# The worker's own control group.\nDelegate=yes\n")
        if facts.systemd_version >= 254:
            lines.append("DelegateSubgroup=agent\n")
    return "".join([*lines, _UNIT_TAIL])


def quoted(word: str) -> str:
    """One word of a command line in a unit: no specifier, no variable, no blank splits it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return '"' + escaped.replace("$", "$$") + '"'


def desktop_entry(facts: Facts) -> str:
    """The helper's autostart entry, for every user and desktop of this PC."""
    words = (facts.python, "-P", "-m", "officegrid", "agent", "session")
    command = " ".join(_desktop_word(word) for word in words)
    return (
        "[Desktop Entry]\nType=Application\nName=Office Grid session helper\n"
        "Comment=Tells the Office Grid agent whether this desktop is in use\n"
        f"Exec={command}\nNoDisplay=true\nX-GNOME-Autostart-enabled=true\n"
    )


def _desktop_word(word: str) -> str:
    # Quoted as an argument first, then as a value, in which a backslash is doubled again.
    for reserved in '\\"`$':
        word = word.replace(reserved, "\\" + reserved)
    return '"' + word.replace("\\", "\\\\").replace("%", "%%") + '"'
