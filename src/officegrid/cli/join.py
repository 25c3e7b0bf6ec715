"""`officegrid join`: from an address and a code to this machine's own credentials.

On a desktop that is most of the way to a working agent, so with an agent's code this also makes
the agent a service of the PC: `--install` in scripts, a question on a terminal. It may be run
again: a PC that has joined keeps its identity, and no code is used, unless the coordinator does not
accept that identity any more.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from officegrid.cli.agent_install import (
    DRIVERS,
    Prepared,
    carry_out,
    prepare,
    refuse_other_roles,
)
from officegrid.cli.common import json_option
from officegrid.cli.main import show_json
from officegrid.core.errors import (
    AuthError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    OfficeGridError,
    UsageError,
)
from officegrid.transport.address import normalise_url
from officegrid.transport.facts import machine_facts
from officegrid.transport.http import Connection
from officegrid.transport.join import join as join_grid
from officegrid.transport.profile import (
    Profile,
    load_profile,
    profile_path,
    save_profile,
)

if TYPE_CHECKING:
    from officegrid.agent.install.plan import Join as JoinStep

ASK_S = 10.0
"""For the answer whether an identity is still good; a start of the PC waits for it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says; `install` is None where it says nothing about it."""

    url: str
    code: str | None = field(repr=False)
    name: str
    install: bool | None
    anew: bool
    driver: str | None
    account: str | None
    root: Path | None
    as_json: bool

    def joined(self) -> Profile:
        """Join now, asking for the code where none was given."""
        code = self.code or click.prompt("Join code", hide_input=False, err=True)
        return join_grid(self.url, str(code), name=self.name, facts=machine_facts())

    def note(self, line: str) -> None:
        """To the person; standard output belongs to JSON where that was asked for."""
        click.echo(line, err=self.as_json)


@click.command()
@click.argument("url")
@click.option("--code", envvar="OFFICEGRID_CODE", help="The join code; asked for when left out.")
@click.option("--name", default=socket.gethostname, show_default="host name")
@click.option(
    "--install/--no-install",
    default=None,
    help="With an agent's code: make the agent a service of this PC, or do not ask about it.",
)
@click.option(
    "--anew", is_flag=True, help="With --install: as a new machine, although the agent has joined."
)
@click.option("--driver", type=click.Choice(DRIVERS), help="With --install: what runs the VM.")
@click.option("--account", help="With --install: the account that the agent runs as.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Install into this folder tree instead of this system; nothing is started.",
)
@json_option
def join(
    url: str, code: str | None, name: str, install: bool | None, anew: bool, driver: str | None,
    account: str | None, root: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Join this machine, or this user, to the grid at URL; on a desktop, install its agent."""
    # Programs that are started from here, some under other accounts, would inherit it.
    os.environ.pop("OFFICEGRID_CODE", None)
    asked = Asked(
        normalise_url(url), code, name, install, anew, driver, account, root, as_json
    )  # fmt: skip
    if install:
        _install(asked)
    elif driver or account or anew:
        raise UsageError(
            "--driver, --account and --anew are about an installation.", fix="Add --install."
        )
    else:
        _join(asked)


def _join(asked: Asked) -> None:
    """Join; then, for a desktop, see to its service or tell how."""
    # Whoever names a home means that one, and no service.
    service = None if os.environ.get("OFFICEGRID_HOME") else _installed(asked.root)
    if service is not None and asked.install is None:
        profile, path = service
        if asked.code and profile.url == asked.url and _is_refused(asked, profile):
            _install(replace(asked, anew=True))
            return
        _tell(asked, profile, path, f"This PC's agent has joined {profile.url} already")
        asked.note(
            "No code was used. --install --anew joins as a new machine, --no-install as this user."
        )
        return
    profile = asked.joined()
    path = save_profile(profile)
    _tell(asked, profile, path, f"Joined {profile.url}")
    if profile.role == "worker":
        asked.note("Start working: officegrid worker")
    elif profile.role == "agent" and asked.install is None:
        _offer(asked, profile, path)


def _offer(asked: Asked, profile: Profile, path: Path) -> None:
    """Ask whether to install; where nobody can answer, or rights are missing, say how."""
    command = _next_command(asked, path)
    try:
        prepared = _prepare(asked)
    except ForbiddenError:
        asked.note(f"To make it a service of this PC, as administrator: {command}")
        return
    except OfficeGridError as error:
        asked.note(f"It is no service of this PC yet. {error.what} {error.why} {error.fix}")
        asked.note(f"Then: {command}")
        return
    if prepared.has_joined and prepared.profile != path:
        asked.note(f"The agent that is installed here keeps its own identity: {prepared.profile}")
    elif asked.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        asked.note(f"To make it a service of this PC: {command}")
    elif click.confirm("Make the agent a service of this PC now?", default=True, err=True):
        _carry_out(asked, prepared, profile, path)
    else:
        asked.note(f"Later: {command}")


def _install(asked: Asked) -> None:
    """Join and install in one go; again, only what is not as it should be."""
    # First of all whatever would stop the installation: a code may be good for one use only.
    prepared = _prepare(asked)
    present = None if asked.anew else _present(asked, prepared)
    if present is not None and asked.code and _is_refused(asked, present):
        asked, present = replace(asked, anew=True), None
        prepared = _prepare(asked)
    found, path = (None, None) if present or asked.anew or asked.code else _left_by_join(asked)
    if present is None and found is None and not asked.code:
        code = click.prompt("Join code", hide_input=False, err=True)
        asked = replace(asked, code=str(code))
    _carry_out(asked, prepared, found, path)


def _carry_out(
    asked: Asked, prepared: Prepared, profile: Profile | None, path: Path | None
) -> None:
    """Install with this identity, which lies at `path`, or with that of a fresh join."""
    changed: list[str] = []

    def say(line: str) -> None:
        changed.append(line)
        asked.note(line)

    def join_now(_: JoinStep, folder: Path) -> None:
        own = profile or asked.joined()
        refuse_other_roles(own)
        save_profile(own, folder)

    done = carry_out(prepared, join_now, say)
    if path is not None and path != prepared.profile:
        # One identity in two places would be taken for a copied disk one day.
        path.unlink(missing_ok=True)
        say(f"moved   {path} to {prepared.profile}")
    installed = load_profile(prepared.profile.parent)
    head = f"This PC's agent has joined {installed.url}"
    _tell(asked, installed, prepared.profile, head, changed if done else [], installed_now=True)
    asked.note("See what it does: officegrid agent status")


def _prepare(asked: Asked) -> Prepared:
    """Raises OfficeGridError for whatever stands in the way of an installation."""
    from officegrid.agent.install.plan import Wishes

    wishes = Wishes(driver=asked.driver, account=asked.account)
    return prepare(wishes, asked.root, asked.url, anew=asked.anew)


def _present(asked: Asked, prepared: Prepared) -> Profile | None:
    """The installed agent's identity. Raises ConflictError when it belongs to another grid."""
    if not prepared.has_joined:
        return None
    profile = load_profile(prepared.profile.parent)
    if profile.url != asked.url:
        raise ConflictError(
            f"This PC's agent belongs to the grid at {profile.url}.",
            f"It is {profile.name!r} ({profile.machine_id}) there, and works for one grid only.",
            "Add --anew to leave that grid for this one.",
        )
    return profile


def _is_refused(asked: Asked, profile: Profile) -> bool:
    """Does its coordinator not accept this identity any more? Then it is replaced.

    A coordinator that cannot be asked changes nothing: this may be a start without a network.
    """
    try:
        with Connection(profile.url, profile.ca_pem, profile.token, timeout_s=ASK_S) as line:
            # The cheapest thing that an agent may ask for. There is no such chunk.
            line.call("GET", f"/v1/image-chunks/{'0' * 64}", retry=False)
    except AuthError as error:
        why = " ".join(text for text in (error.what, error.why) if text)
        asked.note(f"{profile.name!r} ({profile.machine_id}) is not accepted any more: {why}")
        asked.note("This PC joins as a new machine, with the code.")
        return True
    except (NotFoundError, ForbiddenError):
        return False
    except OfficeGridError as error:
        asked.note(f"Whether this PC's identity is still good could not be asked: {error.what}")
    return False


def _left_by_join(asked: Asked) -> tuple[Profile | None, Path | None]:
    """An agent's identity on this grid that an earlier `join` without an installation left."""
    try:
        profile = load_profile()
    except AuthError:
        return None, None
    if profile.role != "agent" or profile.url != asked.url:
        return None, None
    return profile, profile_path()


def _installed(root: Path | None) -> tuple[Profile, Path] | None:
    """Of an agent that is installed here; None also where only root could tell."""
    from officegrid.agent.install import machine as here

    machine = here.this_machine(root.absolute() if root else None)
    try:
        if not machine.manifest.exists():
            return None
        home = here.home(machine)
        return load_profile(home), profile_path(home)
    except (OfficeGridError, OSError):
        return None


def _next_command(asked: Asked, path: Path) -> str:
    """What an administrator types to install with the identity at `path`."""
    called = Path(sys.argv[0])
    program = str(called) if called.is_absolute() and called.stem == "officegrid" else "officegrid"
    sudo = "" if sys.platform == "win32" or os.geteuid() == 0 else "sudo "
    words = [program, "--home", str(path.parent), "join", asked.url, "--install"]
    words += ["--root", str(asked.root)] if asked.root else []
    return sudo + " ".join(f'"{word}"' if " " in word else word for word in words)


def _tell(
    asked: Asked, profile: Profile, path: Path, head: str, changed: list[str] | None = None, *,
    installed_now: bool = False,
) -> None:  # fmt: skip
    """Whom this machine is now, for people or for scripts."""
    if asked.as_json:
        show_json(
            {"machine_id": profile.machine_id, "role": profile.role, "name": profile.name,
             "url": profile.url, "profile": str(path), "installed": installed_now,
             "changed": changed or []}
        )  # fmt: skip
        return
    click.echo(f"{head} as {profile.role} {profile.name!r} ({profile.machine_id}).")
