"""What an installation would create on Windows: pure data, to be shown before it is done.

`control.install` carries a ServicePlan out, `runkey.write` a RunKeyPlan; `lines()` says in words
what that means, and `commands()` how an admin would do the same by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SERVICE_NAME = "OfficeGridAgent"
LOCAL_SYSTEM = "LocalSystem"
RUN_KEY = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Run"


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The agent's Windows service."""

    command: tuple[str, ...]
    """Program and arguments; the program with its full path."""
    account: str = LOCAL_SYSTEM
    """ "LocalSystem", ".\\name" (an account of this PC), "DOMAIN\\name", "NT SERVICE\\name"."""
    name: str = SERVICE_NAME
    display_name: str = "Office Grid agent"
    description: str = (
        "Runs one worker VM while nobody uses this PC and gives the PC back at once. "
        "See: officegrid agent status"
    )
    restart_delays_s: tuple[int, ...] = (5, 60, 300)
    """After the first, the second and every further failure within `failures_forgotten_s`."""
    failures_forgotten_s: int = 86_400
    preshutdown_s: int = 30
    """How long a shutdown of Windows waits for the VM to be given up; its own default is 10 s."""

    @property
    def image_path(self) -> str:
        """The command line as the service manager stores it."""
        return command_line(self.command)

    @property
    def needs_password(self) -> bool:
        """A password is wanted for ordinary accounts, not for those that Windows manages."""
        head, _, name = self.account.rpartition("\\")
        managed = head.upper() in ("NT SERVICE", "NT AUTHORITY") or name.endswith("$")
        return self.account != LOCAL_SYSTEM and not managed

    def lines(self) -> list[str]:
        """What would be created, in words."""
        said = [
            f"service {self.name} ({self.display_name}), started automatically after boot, delayed",
            f"  runs {self.image_path}",
            f"  as {self.account}",
            f"  started again after {self._delays()} when it fails; failures are forgotten after "
            f"{self.failures_forgotten_s // 3600} h",
            f"  a shutdown of Windows waits up to {self.preshutdown_s} s for it",
        ]
        if self.needs_password:
            said.append(
                f"  {self.account} must have the right to log on as a service (SeServiceLogonRight:"
                " Local Security Policy, User Rights Assignment); the Services console gives it"
                " when the account is entered there, this installation does not"
            )
        return said

    def commands(self) -> list[str]:
        """The same for cmd.exe, except the preshutdown time, which sc cannot set."""
        delays = "/".join(f"restart/{s * 1000}" for s in self.restart_delays_s)
        path = self.image_path.replace('"', '\\"')
        password = " password= *" if self.needs_password else ""
        return [
            f'sc create {self.name} binPath= "{path}" start= delayed-auto obj= "{self.account}"'
            f'{password} DisplayName= "{self.display_name}"',
            f'sc description {self.name} "{self.description}"',
            f"sc failure {self.name} reset= {self.failures_forgotten_s} actions= {delays}",
            f"sc failureflag {self.name} 1",
        ]

    def _delays(self) -> str:
        return ", ".join(f"{delay_s} s" for delay_s in self.restart_delays_s)


@dataclass(frozen=True, slots=True)
class RunKeyPlan:
    """Starts the session helper with each logon of anybody at this PC."""

    command: tuple[str, ...]
    value_name: str = "OfficeGridSession"

    @property
    def value(self) -> str:
        return command_line(self.command)

    def lines(self) -> list[str]:
        return [
            f"registry HKLM\\{RUN_KEY}, value {self.value_name}",
            f"  starts at every logon, as that user: {self.value}",
        ]

    def commands(self) -> list[str]:
        value = self.value.replace('"', '\\"')
        return [f'reg add "HKLM\\{RUN_KEY}" /v {self.value_name} /t REG_SZ /d "{value}" /f']


def command_line(command: Sequence[str]) -> str:
    """One command line out of its arguments, by the rules of CommandLineToArgvW.

    The program is always quoted: an unquoted path with a blank would let anybody who may write
    C:\\Program.exe run it as the service.
    """
    program, *arguments = command
    return " ".join([f'"{program}"', *(_quoted(argument) for argument in arguments)])


def _quoted(argument: str) -> str:
    if argument and not any(character in argument for character in ' \t\n\v"'):
        return argument
    out, backslashes = [], 0
    for character in argument:
        if character == "\\":
            backslashes += 1
            continue
        # Backslashes count double before a quote, and as they are elsewhere.
        out.append("\\" * (backslashes * 2 + 1 if character == '"' else backslashes) + character)
        backslashes = 0
    return '"' + "".join(out) + "\\" * (backslashes * 2) + '"'
