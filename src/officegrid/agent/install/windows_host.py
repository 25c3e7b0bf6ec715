"""The process of the Windows service: `python -m officegrid.agent.install.windows_host HOME`.

The service manager starts it. What it says goes into `agent.log` in the agent's home, because a
service has no terminal; an error before the agent runs is told there too.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from officegrid.core.errors import ForbiddenError, OfficeGridError


def main(arguments: list[str]) -> int:
    """Be the service until it is stopped; returns its exit code."""
    from officegrid.agent.log import get_logger, log_to
    from officegrid.agent.windows import service

    home = Path(arguments[0])
    os.environ["OFFICEGRID_HOME"] = str(home)
    log_to(home / "agent.log")
    log = get_logger("service")

    def run(stop: threading.Event, shutting_down: threading.Event) -> int:
        try:
            _run(home, stop, shutting_down)
        except OfficeGridError as error:
            log.error("failed", what=error.what, why=error.why, fix=error.fix)
            return error.exit_code
        except Exception as error:
            log.error("failed", what=f"{type(error).__name__}: {error}")
            return 1
        return 0

    try:
        return service.host(run)
    except (OSError, OfficeGridError) as error:
        log.error("no_service", what=str(error))
        return 1


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
