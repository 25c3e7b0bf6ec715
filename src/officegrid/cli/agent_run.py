"""`officegrid agent run`: the host agent in the foreground, as services start it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from officegrid.core.errors import ForbiddenError


@click.command()
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Log into this file, of bounded size, instead of stderr.",
)
def run(log_file: Path | None) -> None:
    """Watch this desk until stopped by Ctrl-C or SIGTERM; SIGHUP reads agent.toml again."""
    from officegrid.agent.log import log_to
    from officegrid.agent.main import Agent
    from officegrid.agent.system_stop import is_shutting_down
    from officegrid.transport.profile import home_folder, load_profile

    log_to(log_file)
    profile = load_profile()
    if profile.role != "agent":
        raise ForbiddenError(
            f"This machine joined as {profile.role}, not as an agent.",
            fix="Join again with a code made by `officegrid join-code --role agent`.",
        )
    agent = Agent(profile, home_folder())

    def stop(signum: int, _: FrameType | None) -> None:
        # Asking the system takes a moment, but nothing else happens on this thread.
        agent.stop(shutdown=signum == signal.SIGTERM and is_shutting_down())

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, lambda *_: agent.reload())
    agent.run()
