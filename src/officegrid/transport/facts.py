"""What a joining machine tells of itself, for the people who look at `officegrid machine`."""

from __future__ import annotations

import os
import platform

from officegrid import __version__

HARDWARE_ID_VARIABLE = "OFFICEGRID_HARDWARE_ID"
HARDWARE_ID_CHARS = 64


def told_hardware_id() -> str:
    """What tells this computer from another one, where whoever started us knows it; else ""."""
    return os.environ.get(HARDWARE_ID_VARIABLE, "").strip()[:HARDWARE_ID_CHARS]


def machine_facts() -> dict[str, object]:
    """System, versions, CPUs, memory in MB, and the hardware id if there is one."""
    import psutil

    facts: dict[str, object] = {
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "officegrid": __version__,
        "cpus": os.cpu_count() or 1,
        "memory_mb": psutil.virtual_memory().total // 1_000_000,
    }
    if hardware_id := told_hardware_id():
        facts["hardware_id"] = hardware_id
    return facts
