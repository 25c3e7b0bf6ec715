"""`python -m bench.deltas_probe STEP …`: one step in a process of its own, and what it took.

A line of JSON on stdout: seconds of CPU and of time, and the most memory it had, in MB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from officegrid.bundles.archive import extract_archive, make_archive
from officegrid.bundles.delta import apply_delta, make_delta
from officegrid.bundles.pieces import cut


def main() -> None:
    step, *paths = sys.argv[1:]
    begun = time.monotonic()
    found = {"nothing": dict, "full": full, "make": make, "apply": apply}[step](*map(Path, paths))
    used = resource.getrusage(resource.RUSAGE_SELF)
    found |= {
        "wall_s": time.monotonic() - begun,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mb": _peak_mb(),
    }
    print(json.dumps(found))


def full(new: Path, stream: Path) -> dict[str, float]:
    """A whole version, as pieces; `stream` becomes its archive."""
    facts = make_archive(new, stream)
    stored = sum(one.piece.stored_bytes for one in cut(stream))
    return {"bytes": stored, "raw_bytes": facts.raw_bytes}


def make(old_stream: Path, new_stream: Path, delta: Path) -> dict[str, float]:
    facts = make_delta(old_stream, new_stream, delta)
    return {"bytes": facts.stored_bytes, "memory_bytes": facts.memory_bytes}


def apply(old: Path, delta: Path, out: Path) -> dict[str, float]:
    """What a worker does: a folder is packed again, changed, and unpacked."""
    if old.is_file():
        apply_delta(old, delta, out)
        return {}
    before, after = out.with_suffix(".before"), out.with_suffix(".after")
    make_archive(old, before, everything=True)
    apply_delta(before, delta, after)
    extract_archive(after, "folder", out)
    return {}


def _peak_mb() -> float:
    """Of this process alone; ru_maxrss also counts the process that started it, before exec."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
