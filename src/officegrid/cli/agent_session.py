"""`officegrid agent session`: the helper in each logon session, which tells the agent about input.

On Windows and Linux the agent is a service that cannot see the desktops of people; this small
program runs in each of them. Nothing is read but times and states: no keys, no window contents.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from officegrid.core.errors import UsageError

Read = Callable[[], dict[str, Any]]


@click.command()
@click.option(
    "--at",
    metavar="PLACE",
    help="The agent's socket, on Windows the name of its pipe (default: "
    "$OFFICEGRID_AGENT_SOCKET, else an agent of this user, else the service).",
)
@click.option("--look", is_flag=True, help="Print one reading and end; no agent is needed.")
@click.option("--json", "as_json", is_flag=True, help="With --look: as JSON.")
def session(at: str | None, look: bool, as_json: bool) -> None:
    """Report the input of this logon session to the agent, until the session ends."""
    read = _source()
    if look:
        _show(read, as_json)
    elif sys.platform == "win32":
        _run_on_windows(read, at)
    else:
        _run_on_unix(read, at)


def _source() -> Read:
    """What reads this session on this system."""
    if sys.platform == "win32":
        from officegrid.agent.sensors.windows import own_reading

        return own_reading
    from officegrid.agent.sensors.base import SensorError
    from officegrid.agent.sensors.helper import OwnReading

    try:
        return OwnReading()
    except SensorError as error:
        raise UsageError(
            "This is not a desktop session.", str(error), "Start it from the desktop's autostart."
        ) from None


def _show(read: Read, as_json: bool) -> None:
    from officegrid.agent.sensors.base import SensorError

    try:
        reading = read()
    except SensorError as error:
        reading = {"idle_s": None, "why": str(error)}
    if as_json:
        click.echo(json.dumps(reading))
        return
    for key, value in reading.items():
        if value != "":
            click.echo(f"{key}: {'not known' if value is None else value}")


def _run_on_unix(read: Read, at: str | None) -> None:
    import signal
    from threading import Event

    from officegrid.agent.channel import unix
    from officegrid.agent.door import SOCKET_VARIABLE, served_path
    from officegrid.agent.sensors.helper import OwnReading, run_helper
    from officegrid.transport.profile import home_folder

    assert isinstance(read, OwnReading)
    place = at or os.environ.get(SOCKET_VARIABLE)
    path = Path(place) if place else served_path(home_folder() / "agent")
    if not place and not path.exists():
        path = unix.SERVICE_SOCKET
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_helper(path, stop, own=read)


def _run_on_windows(read: Read, at: str | None) -> None:
    """One helper per session is enough: a second one ends at once, and well."""
    from officegrid.agent.channel import pipe
    from officegrid.agent.door import SOCKET_VARIABLE
    from officegrid.agent.session_helper import SessionHelper
    from officegrid.agent.windows.session_window import SessionWindow, claim_session
    from officegrid.agent.windows.translate import SessionChange

    name = at or os.environ.get(SOCKET_VARIABLE) or pipe.PIPE_NAME
    claim = claim_session(f"OfficeGridSession-{name}")
    if claim is None:
        click.echo("This session has its helper already.", err=True)
        return
    agent = pipe.Connection(name)
    helper = SessionHelper(read, agent)

    def changed(change: SessionChange | None) -> None:
        if change in (SessionChange.LOCK, SessionChange.UNLOCK):
            helper.locked = change is SessionChange.LOCK
        helper.wake.set()

    def ended() -> None:
        helper.end.set()
        helper.wake.set()

    window = SessionWindow(changed, ended)
    try:
        helper.run()
    except KeyboardInterrupt:
        pass
    finally:
        window.close()
        agent.close()
        claim.close()
