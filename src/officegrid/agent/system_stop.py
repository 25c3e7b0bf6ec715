"""Is this PC shutting down right now? Then the agent powers its VM off instead of saving it."""

from __future__ import annotations

import shutil
import subprocess
import sys

_ANSWER_S = 1.0


def is_shutting_down() -> bool:
    """Linux with systemd: `systemctl is-system-running` says "stopping" (systemctl(1)). Elsewhere
    the service tells the agent, and this is False. Takes at most a second; never raises."""
    if not sys.platform.startswith("linux"):
        return False
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return False
    try:
        done = subprocess.run(
            [systemctl, "is-system-running"], capture_output=True, check=False,
            stdin=subprocess.DEVNULL, timeout=_ANSWER_S, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "stopping"
