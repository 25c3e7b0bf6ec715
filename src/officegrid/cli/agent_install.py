"""`officegrid agent install | uninstall`: the agent as a service of this PC.

`officegrid join --install` does the same through `prepare` and `carry_out`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from officegrid import __version__
from officegrid.core.errors import ConflictError, ForbiddenError, NotFoundError, UsageError

if TYPE_CHECKING:
    from officegrid.agent.install.doing import Machine
    from officegrid.agent.install.manifest import Manifest
    from officegrid.agent.install.plan import Join, Plan, Wishes
    from officegrid.transport.profile import Profile

PASSWORD_VARIABLE = "OFFICEGRID_ACCOUNT_PASSWORD"
"""Environment variable with the password of --account, for installations nobody watches."""
DRIVERS = ["auto", "virtualbox", "qemu", "libvirt", "hyperv", "process"]
_root = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Into this folder tree instead of this system; nothing is started. Not on Windows.",
)
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Print exactly what would change, and change nothing."
)


@click.command()
@click.option("--url", metavar="URL", help="Join the grid at this address.")
@click.option("--code", envvar="OFFICEGRID_CODE", help="The join code; asked for when left out.")
@click.option("--name", help="This PC's name on the grid (default: host name).")
@click.option("--driver", type=click.Choice(DRIVERS), help="What runs the VM.")
@click.option("--vm", help="Name of the VM.")
@click.option("--image", metavar="FILE", help="Disk image to make the VM from, full path.")
@click.option("--memory", metavar="SIZE", help="Memory of the VM: 2048MB, 2GB.")
@click.option("--cpus", type=click.IntRange(0, 256), help="CPUs of the VM; 0: all cores but one.")
@click.option("--cpu-cap", type=click.IntRange(1, 100), help="Percent of its CPUs it may use.")
@click.option("--idle", metavar="TIME", help="Without input for so long, the PC is free: 10m.")
@click.option("--quiet-hours", multiple=True, help='Never then: "mon-fri 08:00-18:00". Repeatable.')
@click.option("--account", help="The account that the agent runs as.")
@click.option("--upgrade", is_flag=True, help="Replace what another version installed.")
@_root
@_dry_run
def install(
    url: str | None, code: str | None, name: str | None, driver: str | None, vm: str | None,
    image: str | None, memory: str | None, cpus: int | None, cpu_cap: int | None,
    idle: str | None, quiet_hours: tuple[str, ...], account: str | None, upgrade: bool,
    root: Path | None, dry_run: bool,
) -> None:  # fmt: skip
    """Make the agent a service of this PC, with a helper in each desktop session."""
    from officegrid.agent.install.plan import Wishes

    os.environ.pop("OFFICEGRID_CODE", None)  # not for the programs that this starts
    said = Wishes(
        driver, vm, image, _megabytes(memory), cpus, cpu_cap, idle, quiet_hours, account
    )  # fmt: skip
    prepared = prepare(said, root, url, upgrade=upgrade, dry_run=dry_run)
    if dry_run:
        _show(prepared)
        return
    if url is not None and not prepared.has_joined and not code:
        code = click.prompt("Join code", hide_input=True, err=True)

    def join_now(step: Join, folder: Path) -> None:
        _join(step.url, str(code), name, folder)

    carry_out(prepared, join_now, click.echo)


@click.command()
@click.option("--purge", is_flag=True, help="Also the VM, this PC's identity, all files, account.")
@_root
@_dry_run
def uninstall(purge: bool, root: Path | None, dry_run: bool) -> None:
    """Take away what `install` made; the VM is saved and kept, unless --purge."""
    from officegrid.agent.install import apply, as_account, trust
    from officegrid.agent.install import machine as here

    machine = here.this_machine(_checked_root(root))
    if not dry_run:
        here.refuse_without_rights(machine)
    known = _known(machine)
    if known is None:
        raise NotFoundError(
            "The agent is not installed here.",
            f"There is no {machine.manifest}.",
            "Nothing to do. An agent that was started by hand is stopped with Ctrl-C.",
        )
    if purge:  # what is in there says which VM is deleted, and by which program
        trust.refuse_foreign_home(machine, known.home, known.account, known)
    if dry_run:
        for line in apply.removals(machine, known, purge=purge):
            click.echo(line)
        click.echo("Nothing was changed.")
        return

    def delete_vm() -> None:
        home = machine.path(known.home)
        if machine.offline or not home.is_dir():
            return
        account = "" if sys.platform == "win32" else known.account
        try:
            as_account.run_as(account, "delete", home)
        except as_account.AccountError:  # so it never ran a VM either; what lies there is files
            as_account.run_as("", "delete", home)

    apply.uninstall(machine, known, purge=purge, delete_vm=delete_vm, say=click.echo)
    click.echo("The agent is uninstalled.")


@dataclass(frozen=True, slots=True)
class Prepared:
    """An installation that was looked into: nothing stands in its way that could be seen."""

    machine: Machine
    plan: Plan
    known: Manifest | None
    wishes: Wishes

    @property
    def profile(self) -> Path:
        """Of the installed agent, whether or not it is there yet."""
        return self.machine.path(str(Path(self.plan.home) / "profile.json"))

    @property
    def has_joined(self) -> bool:
        return self.profile.exists()


def prepare(
    said: Wishes, root: Path | None, url: str | None, *,
    upgrade: bool = False, dry_run: bool = False, anew: bool = False,
) -> Prepared:  # fmt: skip
    """Look what would be done, changing nothing. `anew`: an identity that is there is replaced.

    Raises OfficeGridError for everything that would make the installation fail.
    """
    from officegrid.agent.install import machine as here

    machine = here.this_machine(_checked_root(root))
    if not dry_run:
        here.refuse_without_rights(machine)
    known = _known(machine)
    wishes = said.over(known.earlier_wishes()) if known else said
    facts = here.look(machine, joining=url is not None)
    plan = here.make_plan(wishes, facts, url, anew=anew)
    _check(machine, plan, wishes, known, upgrade=upgrade)
    return Prepared(machine, plan, known, wishes)


def carry_out(
    prepared: Prepared, join_now: Callable[[Join, Path], None], say: Callable[[str], None]
) -> bool:
    """Install, `say` a line for each change; False: there was nothing to do."""
    from officegrid.agent.install import apply

    machine, plan, known = prepared.machine, prepared.plan, prepared.known
    done = apply.install(
        machine, plan, known, version=__version__, wishes=prepared.wishes, join=join_now,
        password=_password(prepared), say=say,
    )  # fmt: skip
    for path in apply.kept_by_hand(machine, plan, known):
        click.echo(f"kept    {path}: somebody has changed it; change it there.", err=True)
    for sentence in _warnings(machine, plan):
        click.echo(f"Note: {sentence}", err=True)
    say("The agent is installed." if done else "Nothing to change.")
    if not prepared.has_joined:
        say("It starts once this PC has joined: run this again with --url and --code.")
    return done


def _show(prepared: Prepared) -> None:
    from officegrid.agent.install import apply

    found = apply.changes(prepared.machine, prepared.plan, prepared.known)
    for _, text in found:
        click.echo(text)
    for sentence in prepared.plan.notes:
        click.echo(f"Note: {sentence}", err=True)
    click.echo("Nothing was changed." if found else "Nothing to change.")


def _warnings(machine: Machine, plan: Plan) -> list[str]:
    """What is not as it should be, but no reason to refuse."""
    from officegrid.agent.install import as_account
    from officegrid.agent.install import machine as here
    from officegrid.core.errors import OfficeGridError

    found = list(plan.notes)
    if machine.offline:
        return found
    exposed = here.exposed_python(sys.executable)
    found += [exposed] if exposed else []
    try:
        account = "" if sys.platform == "win32" else plan.account
        found += as_account.run_as(account, "check", Path(plan.home))
    except OfficeGridError as error:
        found.append(f"{error.what} {error.why} {error.fix}")
    return found


def _check(
    machine: Machine, plan: Plan, wishes: Wishes, known: Manifest | None, *, upgrade: bool
) -> None:
    """Everything that would make the service fail, before anything is touched."""
    from officegrid.agent.install import machine as here
    from officegrid.agent.install import trust
    from officegrid.agent.install.plan import WriteFile

    if known is not None and known.version != __version__ and not upgrade:
        raise ConflictError(
            f"Office Grid {known.version} is installed as this PC's agent; this is {__version__}.",
            "Two versions would fight over one service.",
            "Replace it by `officegrid agent install --upgrade`, or uninstall it first with its "
            "own command.",
        )
    trust.refuse_foreign_home(machine, plan.home, plan.account, known)
    here.refuse_missing_image(machine, wishes)
    here.refuse_missing_account(machine, plan.account)
    for step in plan.steps:
        if isinstance(step, WriteFile) and step.path.endswith("agent.toml"):
            _check_settings(step.content)


def _check_settings(content: bytes) -> None:
    """By the agent's own reader. Raises UsageError."""
    import tempfile

    from officegrid.agent.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "agent.toml"
        path.write_bytes(content)
        load_config(path)


def _known(machine: Machine) -> Manifest | None:
    from officegrid.agent.install import manifest

    return manifest.read(machine.manifest)


def _checked_root(root: Path | None) -> Path | None:
    if root is not None and sys.platform == "win32":
        raise UsageError("--root is for folder trees of Linux and macOS.", "This is Windows.")
    return root.absolute() if root else None


def _megabytes(size: str | None) -> int | None:
    if size is None:
        return None
    from officegrid.core.quantities import parse_size_bytes

    # A bare number would be bytes; nobody means that for a VM.
    if re.fullmatch(r"\d+", size):
        raise UsageError(f"--memory {size} has no unit.", fix=f"Write {size}MB, or 2GB.")
    return parse_size_bytes(size) // 1_000_000


def _password(prepared: Prepared) -> str | None:
    """Of the service's account, when it is needed now; never from a command line."""
    from officegrid.agent.install import apply
    from officegrid.agent.install.plan import RegisterService

    # Out of the environment first of all: programs that are started from here inherit it.
    given = os.environ.pop(PASSWORD_VARIABLE, None)
    for step, _ in apply.changes(prepared.machine, prepared.plan, prepared.known):
        if isinstance(step, RegisterService) and step.service.needs_password:
            asked = f"Password of {prepared.plan.account}"
            return given or str(click.prompt(asked, hide_input=True, err=True))
    return None


def refuse_other_roles(profile: Profile) -> None:
    """Raises ForbiddenError unless this is an agent's identity."""
    if profile.role != "agent":
        raise ForbiddenError(
            f"This code makes a machine with the role {profile.role}, not an agent.",
            f"The installation stops here; {profile.name!r} ({profile.machine_id}) is in the "
            "grid's list now.",
            "Ask for a code made by `officegrid join-code --role agent`, and run this again.",
        )


def _join(url: str, code: str, name: str | None, folder: Path) -> None:
    import socket

    from officegrid.transport.facts import machine_facts
    from officegrid.transport.join import join as join_grid
    from officegrid.transport.profile import save_profile

    profile = join_grid(url, code, name=name or socket.gethostname(), facts=machine_facts())
    refuse_other_roles(profile)
    save_profile(profile, folder)
