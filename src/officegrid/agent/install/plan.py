"""What an installation changes on a machine, as data: shown by --dry-run, carried out by `apply`.

A plan is made by pure functions (`systemd.plan`, `launchd.plan`, `windows_service.plan`) from
what the admin wants (`Wishes`) and what is known of the machine (`Facts`). Paths are texts as the
installed system will see them; `apply` puts them below --root where one is given.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from officegrid.agent.windows.service_plan import RunKeyPlan, ServicePlan
from officegrid.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Wishes:
    """Options of `officegrid agent install`; None: not said, so the agent's own default."""

    driver: str | None = None
    vm: str | None = None
    image: str | None = None
    memory_mb: int | None = None
    cpus: int | None = None
    cpu_cap_percent: int | None = None
    idle: str | None = None
    quiet_hours: tuple[str, ...] = ()
    account: str | None = None

    def over(self, earlier: dict[str, Any]) -> Wishes:
        """These, and what an earlier installation was told where these say nothing."""
        own = asdict(self)
        kept = {name: earlier.get(name) for name in own}
        kept["quiet_hours"] = tuple(kept["quiet_hours"] or ())
        said = {name: value for name, value in own.items() if value not in (None, ())}
        return Wishes(**{**kept, **said})


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan depends on, of the machine it is for."""

    python: str
    """Full path of the interpreter that has officegrid."""
    groups: tuple[str, ...] = ()
    """Names of the groups that exist (Linux)."""
    systemd_version: int = 0
    """0: not known."""
    offline: bool = False
    """Into a folder tree (--root): nothing is started, no command is run."""
    program_data: str = r"C:\ProgramData"
    joined: bool = False
    """The agent has, or will have after this installation, an identity of its own."""


@dataclass(frozen=True, slots=True)
class MakeFolder:
    path: str
    mode: int = 0o755
    owner: str = ""
    """Account name; empty: root, or on Windows the administrators and the system alone."""


@dataclass(frozen=True, slots=True)
class WriteFile:
    path: str
    content: bytes
    mode: int = 0o644
    owner: str = ""
    editable: bool = False
    """The admin may change it afterwards; then it is left as it is."""


@dataclass(frozen=True, slots=True)
class MakeLink:
    path: str
    target: str


@dataclass(frozen=True, slots=True)
class MakeAccount:
    """A system account of its own group, without a shell or a password."""

    name: str
    home: str


@dataclass(frozen=True, slots=True)
class Join:
    """Give the agent its identity on the grid. The code is not part of any plan."""

    url: str
    profile: str
    """Path of the file that this makes."""
    owner: str = ""
    anew: bool = False
    """Also where there is an identity already: this replaces it."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program of the system; run when something before it changed, or when `check` fails."""

    words: tuple[str, ...]
    check: tuple[str, ...] = ()
    """Ends with 0 when nothing is to be done. Empty: only after a change."""
    undo: tuple[str, ...] = ()
    """Run first of all when the installation is taken away."""
    undo_last: tuple[str, ...] = ()
    """Run when all else is taken away."""


@dataclass(frozen=True, slots=True)
class RegisterService:
    service: ServicePlan
    start: bool
    restart: bool = False
    """Also when nothing about the service changes: it must read its identity again."""


@dataclass(frozen=True, slots=True)
class SetRunKey:
    value: RunKeyPlan
    wanted: bool = True
    """False: the value is removed, where there is one."""


Step = (
    MakeFolder | WriteFile | MakeLink | MakeAccount | Join | Command | RegisterService | SetRunKey
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order in which they are done; uninstalling goes backwards."""

    home: str
    """OFFICEGRID_HOME of the installed agent."""
    account: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = field(default=())
    """What the admin should know, a sentence each."""


def with_new_identity(plan: Plan) -> Plan:
    """The same, but joining replaces an identity that is there."""
    steps: list[Step] = []
    for step in plan.steps:
        if isinstance(step, Join):
            steps.append(replace(step, anew=True))
        elif isinstance(step, RegisterService):
            steps.append(replace(step, restart=True))
        else:
            steps.append(step)
    return replace(plan, steps=tuple(steps))


def settings_text(wishes: Wishes) -> str:
    """`agent.toml`; only what was said, so that defaults stay the agent's.

    Raises UsageError for an option with a character that no settings file should hold.
    """
    vm = {
        "driver": wishes.driver,
        "name": wishes.vm,
        "image": wishes.image,
        "memory_mb": wishes.memory_mb,
        "cpus": wishes.cpus,
        "cpu_cap_percent": wishes.cpu_cap_percent,
    }
    rules = {"idle": wishes.idle, "quiet_hours": list(wishes.quiet_hours) or None}
    lines = ["# Written by `officegrid agent install`. Once you change it, it is yours."]
    for name, table in (("vm", vm), ("rules", rules)):
        said = [f"{key} = {_toml(value)}" for key, value in table.items() if value is not None]
        lines += [f"[{name}]", *said] if said else []
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    text = str(value)
    if not text.isprintable():
        raise UsageError(
            f"{text!r} cannot be written into the agent's settings.",
            "It holds a line break or another character that is not printable.",
            "Correct that option.",
        )
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
