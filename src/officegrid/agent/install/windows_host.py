"""The process of the Windows service: `python -m officegrid.agent.install.windows_host HOME`.

The service manager starts it. What it says goes into `agent.log` in the agent's home, because a
service has no terminal; an error before the agent runs is told there too. As LocalSystem it also
starts the session helper of everybody who is logged on, and of whoever logs on.
"""

from __future__ import annotations

import ntpath
import os
import sys
import threading
from pathlib import Path

from officegrid.core.errors import ForbiddenError, OfficeGridError


def main(arguments: list[str]) -> int:
    """Be the service until it is stopped; returns its exit code."""
    from officegrid.agent.log import get_logger, log_to
    from officegrid.agent.windows import service
    from officegrid.agent.windows.helpers import HelperKeeper

    home = Path(arguments[0])
    os.environ["OFFICEGRID_HOME"] = str(home)
    log_to(home / "agent.log")
    log = get_logger("service")
    keepers: list[HelperKeeper] = []

    def listen(event: object) -> None:
        for keeper in keepers:
            keeper.listen(event)

    def run(stop: threading.Event, shutting_down: threading.Event) -> int:
        try:
            # Not before: only a service may start programs in the sessions of others.
            keepers.append(HelperKeeper(helper_command(sys.executable)))
            _run(home, stop, shutting_down)
        except OfficeGridError as error:
            log.error("failed", what=error.what, why=error.why, fix=error.fix)
            return error.exit_code
        except Exception as error:
            log.error("failed", what=f"{type(error).__name__}: {error}")
            return 1
        finally:
            for keeper in keepers:
                keeper.close()
        return 0

    try:
        return service.host(run, listen=listen)
    except (OSError, OfficeGridError) as error:
        log.error("no_service", what=str(error))
        return 1


def helper_command(python: str) -> tuple[str, ...]:
    """The session helper runs without a console window: by pythonw."""
    folder, name = ntpath.split(python)
    windowless = ntpath.join(folder, name.replace("python", "pythonw", 1))
    return (windowless, "-P", "-m", "officegrid", "agent", "session")


def _run(home: Path, stop: threading.Event, shutting_down: threading.Event) -> None:
    from officegrid.agent.main import Agent
    from officegrid.transport.profile import load_profile

    profile = load_profile(home)
    if profile.role != "agent":
        raise ForbiddenError(
            f"This machine joined as {profile.role}, not as an agent.",
            fix="Join again with a code made by `officegrid join-code --role agent`.",
        )
    agent = Agent(profile, home)

    def obey() -> None:
        stop.wait()
        agent.stop(shutdown=shutting_down.is_set())

    threading.Thread(target=obey, name="service-stop", daemon=True).start()
    agent.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
