"""The process driver: a worker without a VM, for PCs on which no VM can or may run.

`start` joins the grid if this worker has not yet (`officegrid join`, with what
`seed_folder/officegrid.json` says: {"url", "code", "name"}), then starts `officegrid worker` in
`settings.folder/home`, apart from the agent and at the lowest priorities. `pause` freezes all its
processes; there is no save: `stop` ends them and their memory is free at once.

`stop` kills without asking first. The worker would use a polite signal to release its units, over
the network, while somebody waits for the PC; a frozen one would have to be given the CPU for it.
The agent's own message has the coordinator release the units at that moment, and a commit that
was under way is either acknowledged or done again: nothing is lost that a farewell would save.

Options (`[vm.options]`):
    slots     units worked on at once; default: settings.cpus
    command   run this instead of the worker: a list, for tests
    control_groups   false: stop processes one by one although control groups could be had (Linux)
    log       false: the worker's output is thrown away
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.command import CommandCancelled, CommandProblem, run
from officegrid.agent.drivers.process.keeper import (
    NOTE_NAME,
    Keeper,
    KeeperError,
    Limits,
    load_note,
)
from officegrid.core.errors import UsageError
from officegrid.core.vm import (
    Capabilities,
    DriverError,
    Health,
    HealthLevel,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)

JOIN_TIMEOUT_S = 60.0
MOST_LOG_BYTES = 4 << 20
WORKER = (sys.executable, "-m", "officegrid")


_OPTIONS: dict[str, tuple[type, str]] = {
    "slots": (int, "a whole number"),
    "command": (list, "a list of words"),
    "control_groups": (bool, "true or false"),
    "log": (bool, "true or false"),
}


def check_options(given: dict[str, Any]) -> None:
    """Raises UsageError naming the option that is unknown or of the wrong kind."""
    for key, value in given.items():
        kind, name = _OPTIONS.get(key, (object, ""))
        if not name:
            why = f"There is no such option; there are {', '.join(_OPTIONS)}."
        elif type(value) is not kind or (type(value) is int and not 1 <= value <= 256):
            why = f"It is {name}, not {value!r}."
        else:
            continue
        raise UsageError(
            f"The process option {key!r} is wrong.",
            why,
            "Correct [vm.options]; see docs/drivers/process.md.",
        )


def open_keeper(settings: VmSettings) -> Keeper:
    """The keeper for this operating system."""
    keeper: Keeper
    if sys.platform == "win32":
        from officegrid.agent.drivers.process.windows import WindowsKeeper

        keeper = WindowsKeeper(settings.name, settings.folder)
    else:
        from officegrid.agent.drivers.process.posix import PosixKeeper, open_groups

        wanted = settings.options.get("control_groups", True)
        groups = open_groups(settings.name, settings.folder) if wanted else None
        keeper = PosixKeeper(settings.name, settings.folder, groups)
    return keeper


class ProcessDriver:
    """See the module, and `agent.drivers.base.Driver`."""

    name = "process"

    def __init__(self, settings: VmSettings, keeper: Keeper | None = None) -> None:
        check_options(settings.options)
        self.settings = settings
        self._keeper = keeper or open_keeper(settings)
        self._home = settings.folder / "home"
        self._joined_as = self._home / "instance"
        self._log = settings.folder / "worker.log"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            saves=False,
            imports=False,
            cpu_cap=self._keeper.caps_cpu(),
            repairs=frozenset({RepairStep.RETRY, RepairStep.EMERGENCY_STOP}),
        )

    def detect(self) -> Health:
        weaknesses = self._keeper.weaknesses()
        if not weaknesses:
            return Health(HealthLevel.GOOD, "A native worker can run here.")
        return Health(
            HealthLevel.DEGRADED,
            " ".join(["A native worker can run here, with less control than it should.",
                      *weaknesses]),
            "Let the agent run as a service that may make control groups (systemd: Delegate=yes, "
            "DelegateSubgroup=agent)." if sys.platform == "linux" else "Nothing to be done.",
        )  # fmt: skip

    def state(self) -> VmStatus:
        try:
            return self._look()
        except Exception as error:  # state never raises, whatever the system says
            return VmStatus(VmState.UNKNOWN, f"{type(error).__name__}: {error}")

    def _look(self) -> VmStatus:
        root_lives, members = self._keeper.root_lives(), self._keeper.members()
        if root_lives and members:
            if self._keeper.is_frozen():
                return VmStatus(VmState.PAUSED, "frozen", members)
            return VmStatus(VmState.RUNNING, "running", members)
        if members:
            text = f"The worker has ended, but {len(members)} of its processes go on."
            return VmStatus(VmState.BROKEN, text, members)
        if load_note(self.settings.folder) is not None:
            return VmStatus(VmState.OFF, f"The worker has ended. {self._last_words()}".strip())
        return VmStatus(VmState.OFF, "not started")

    def import_image(self) -> None:
        raise self._unsupported("has no image")

    def start(self, cancel: threading.Event) -> None:
        status = self._look_now()
        if status.state is VmState.RUNNING:
            return
        if status.state is VmState.PAUSED:
            self.resume()
            return
        # What an ended worker has left behind must not run beside the new one.
        self._do(self._keeper.kill, "The rests of the last worker could not be ended.")
        if "command" not in self.settings.options:
            self._join_if_needed(cancel)
        if cancel.is_set():
            raise self._cancelled()
        self._turn_log_over()
        argv, cpus = self._argv(), self.settings.cpus * self.settings.cpu_cap_percent / 100
        limits = Limits(self.settings.memory_mb, cpus)
        environment = {**os.environ, "OFFICEGRID_HOME": str(self._home)}
        log = self._log if self.settings.options.get("log", True) else Path(os.devnull)
        self._do(
            lambda: self._keeper.launch(argv, environment, log, limits),
            "The worker could not be started.",
        )

    def pause(self) -> None:
        status = self._look_now()
        if status.state is not VmState.BROKEN:
            status = self._must_run("paused")
        # Broken: the worker is gone, what it left behind still takes the CPU.
        if status.state is not VmState.PAUSED:
            self._do(self._keeper.freeze, "The worker could not be paused.", Trouble.STUCK)

    def resume(self) -> None:
        if self._must_run("resumed").state is VmState.PAUSED:
            self._do(self._keeper.thaw, "The worker could not be resumed.", Trouble.STUCK)

    def save(self) -> None:
        raise self._unsupported("cannot be saved")

    def stop(self) -> None:
        self._do(self._keeper.kill, "The worker could not be ended.", Trouble.STUCK)

    def discard(self) -> None:
        return None  # there never is a saved state

    def delete(self) -> None:
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)
        for path in (self._log, self._log.with_suffix(".log.1"), self.settings.folder / NOTE_NAME):
            with suppress(OSError):
                path.unlink()

    def repair(self, step: RepairStep) -> None:
        if step not in self.capabilities().repairs:
            raise self._unsupported(f"has no repair {step!r}")
        if step is RepairStep.EMERGENCY_STOP:
            self.stop()
        status = self.state()
        if status.state in (VmState.BROKEN, VmState.UNKNOWN):
            raise DriverError(
                Trouble.STUCK, "The worker is still not as it should be.", status.detail
            )

    # -- parts --------------------------------------------------------------------------------

    def _argv(self) -> list[str]:
        command = self.settings.options.get("command")
        if command is not None:
            return [str(word) for word in command]
        slots = self.settings.options.get("slots") or self.settings.cpus
        return [*WORKER, "worker", "--slots", str(slots)]

    def _look_now(self) -> VmStatus:
        status = self.state()
        if status.state is VmState.UNKNOWN:
            raise DriverError(
                Trouble.FAILED, "The system does not say what the worker does.", status.detail
            )
        return status

    def _must_run(self, what: str) -> VmStatus:
        status = self._look_now()
        if status.state not in (VmState.RUNNING, VmState.PAUSED):
            raise DriverError(
                Trouble.FAILED, f"The worker cannot be {what}.", status.detail or "It is off."
            )
        return status

    def _do(self, action: Callable[[], None], what: str, trouble: Trouble = Trouble.FAILED) -> None:
        try:
            action()
        except (KeeperError, OSError) as error:
            raise DriverError(
                trouble, what, str(error), "See worker.log in the agent's VM folder."
            ) from error

    def _join_if_needed(self, cancel: threading.Event) -> None:
        if (self._home / "profile.json").exists() and not self._is_told_anew():
            return
        order = self._seed()
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        argv = [*WORKER, "join", str(order["url"])]
        if order.get("name"):
            argv += ["--name", str(order["name"])]
        # The code by environment: other users can read command lines.
        env = {"OFFICEGRID_HOME": str(self._home), "OFFICEGRID_CODE": str(order["code"])}
        try:
            finished = run(argv, timeout_s=JOIN_TIMEOUT_S, env=env, cancel=cancel)
        except CommandCancelled:
            raise self._cancelled() from None
        except CommandProblem as error:
            raise self._not_joined(str(error)) from error
        if finished.exit_code:
            raise self._not_joined(finished.stderr.strip() or finished.stdout.strip())
        self._joined_as.write_text(str(order.get("instance_id", "")), encoding="utf-8")

    def _is_told_anew(self) -> bool:
        """A code under another instance id than the one it joined with: it is another machine
        from now on, as after `officegrid join --install --anew`."""
        try:
            told = str(self._seed().get("instance_id", ""))
        except DriverError:
            return False  # no code: the identity stays
        with suppress(OSError):
            return told not in ("", self._joined_as.read_text(encoding="utf-8"))
        return False

    def _seed(self) -> dict[str, Any]:
        file = (self.settings.seed_folder or self.settings.folder) / "officegrid.json"
        try:
            order: dict[str, Any] = json.loads(file.read_bytes())
            if isinstance(order["url"], str) and isinstance(order["code"], str):
                return order
            why = f"{file} has no text under url or code."
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{file}: {type(error).__name__}: {error}"
        raise self._not_joined(why)

    def _turn_log_over(self) -> None:
        with suppress(OSError):
            if self._log.stat().st_size > MOST_LOG_BYTES:
                os.replace(self._log, self._log.with_suffix(".log.1"))

    def _last_words(self) -> str:
        try:
            with open(self._log, "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 2000))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f"Last line of its log: {lines[-1][:200]}" if lines else ""

    def _unsupported(self, what: str) -> DriverError:
        return DriverError(
            Trouble.UNSUPPORTED,
            f"A native worker {what}.",
            "It is a group of ordinary processes.",
            "Use a VM driver for that.",
        )

    def _cancelled(self) -> DriverError:
        return DriverError(
            Trouble.CANCELLED, "The start of the worker was cancelled.", "The PC is needed."
        )

    def _not_joined(self, why: str) -> DriverError:
        return DriverError(
            Trouble.FAILED,
            "The worker could not join the grid.",
            why,
            "Check the address of the coordinator and give the agent a new join code.",
        )
