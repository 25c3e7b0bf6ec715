"""One call of VBoxManage: its environment, its time limit, what came back, when to try again.

An exit code says little: 0 can go with an error text (discardstate), 1 with "has been
successfully started" (some systems), and a machine that does not run has no result code at all.
So a reply carries all three, and the callers read VMState back wherever it matters.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from officegrid.agent.drivers import command
from officegrid.agent.drivers.virtualbox import parse
from officegrid.agent.drivers.virtualbox.vmlog import cause_of
from officegrid.core.vm import DriverError, Trouble

PASSING = frozenset({
    parse.INVALID_OBJECT_STATE,
    parse.OBJECT_IN_USE,
    parse.ACCESS_DENIED,
    parse.SERVER_EXEC_FAILURE,
    parse.SERVER_UNAVAILABLE,
})  # fmt: skip
"""Result codes that pass: a lock that is just being released, a service that just starts."""
BACKOFF_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.0)


@dataclass(frozen=True, slots=True)
class Reply:
    arguments: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    error: parse.ErrorBlock | None

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and self.error is None

    @property
    def code(self) -> int | None:
        return self.error.code if self.error else None

    @property
    def words(self) -> str:
        """What VBoxManage said, for people."""
        if self.error and self.error.text:
            return self.error.text
        return (self.stderr.strip() or self.stdout.strip())[-300:]


def registry_environment(folder: Path, registry: str) -> dict[str, str | None]:
    """The variables that choose a VM registry. `own`: below `folder`, `account`: the account's.

    On Linux and macOS VBOX_USER_HOME alone does not separate two registries: a VBoxSVC of the
    same account that already runs answers with its own. VBOX_IPC_SOCKETID does; it is short, for
    it becomes part of a socket's path.
    """
    if registry == "account":
        return {}
    environment: dict[str, str | None] = {"VBOX_USER_HOME": str(folder / "vbox")}
    if sys.platform != "win32":
        environment["VBOX_IPC_SOCKETID"] = ipc_id(folder)
    return environment


def ipc_id(folder: Path) -> str:
    return "og" + hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:10]


class Manage:
    """Calls VBoxManage. Safe to use from several threads; see driver.py for who may when."""

    def __init__(self, program: Path, environment: Mapping[str, str | None]) -> None:
        self.program = program
        self.environment = dict(environment)

    def call(
        self,
        *arguments: str,
        timeout_s: float,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """One call. Raises DriverError TIMEOUT (the call was killed) or MISSING, and
        command.CommandCancelled if `cancel` is set meanwhile."""
        try:
            done = command.run(
                [str(self.program), *arguments],
                timeout_s=timeout_s,
                env=self.environment,
                cancel=cancel,
            )
        except command.CommandTimeout:
            raise DriverError(
                Trouble.TIMEOUT,
                f"VirtualBox did not answer 'VBoxManage {arguments[0]}' within {timeout_s:g} s.",
                "Its service VBoxSVC hangs, or this PC is very busy.",
                "The agent tries again, and ends VBoxSVC if that does not help.",
            ) from None
        except command.CommandMissing as error:
            raise DriverError(
                Trouble.MISSING,
                f"VBoxManage cannot be run at {self.program}.",
                str(error),
                "Install VirtualBox, or correct the option vboxmanage in agent.toml.",
            ) from None
        block = parse.error_block(done.stderr)
        return Reply(tuple(arguments), done.exit_code, done.stdout, done.stderr, block)

    def call_patiently(
        self,
        *arguments: str,
        timeout_s: float,
        done: Callable[[], bool] | None = None,
    ) -> Reply:
        """As call, but what passes by itself is tried again, for six seconds in all. `done` is
        asked between tries: has somebody else reached the goal?"""
        for delay_s in BACKOFF_S:
            reply = self.call(*arguments, timeout_s=timeout_s)
            if reply.ok or reply.code not in PASSING or (done is not None and done()):
                return reply
            time.sleep(delay_s)
        return self.call(*arguments, timeout_s=timeout_s)


def failure(what: str, reply: Reply) -> DriverError:
    """A reply as an error: by the VERR_ names in it, else by its result code, never by its text."""
    cause = cause_of(" ".join(reply.error.statuses)) if reply.error else None
    if cause is not None:
        return DriverError(cause.trouble, what, f"{cause.sentence} ({reply.words})", cause.fix)
    trouble, fix = _BY_CODE.get(reply.code, (Trouble.FAILED, ""))
    if reply.code is None and reply.exit_code == 126:
        trouble, fix = Trouble.MISSING, "Repair or reinstall VirtualBox."
    return DriverError(trouble, what, reply.words, fix)


_BY_CODE: Mapping[int | None, tuple[Trouble, str]] = {
    parse.OBJECT_NOT_FOUND: (Trouble.GONE, "The agent imports the VM anew."),
    parse.INVALID_OBJECT_STATE: (
        Trouble.LOCKED,
        "Wait, or close the VM's window in VirtualBox if somebody opened it.",
    ),
    parse.OBJECT_IN_USE: (Trouble.LOCKED, "Wait, or close VirtualBox's own window."),
    parse.ACCESS_DENIED: (
        Trouble.PERMISSION,
        "Run the agent as an ordinary account of its own: VirtualBox refuses SYSTEM and some "
        "service accounts.",
    ),
    parse.SERVER_EXEC_FAILURE: (Trouble.STUCK, "The agent ends VBoxSVC and tries again."),
    parse.SERVER_UNAVAILABLE: (Trouble.STUCK, "The agent ends VBoxSVC and tries again."),
    parse.REGISTRY_CLASS: (Trouble.MISSING, "Repair or reinstall VirtualBox."),
}
