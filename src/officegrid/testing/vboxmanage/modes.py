"""What the stand-in should be and do: a JSON file that tests write, and call numbers per verb.

    {"version": "7.1.8r168469", "crlf": false, "language": "", "delays_s": {"savestate": 3},
     "unlock_delay_s": 0, "hardware": true, "driver_warning": false, "slow_mode": "",
     "extension_packs": [], "svc_idle_s": 5, "faults": [
        {"verb": "startvm", "calls": [1, 2], "kind": "locked"}]}

`verb` is the sub-command, for controlvm the action (pause, resume, savestate, poweroff), for
`startvm --type emergencystop` "emergencystop", for snapshots "snapshot take" and so on. `calls`
counts that verb from 1; without it every call is meant. Kinds: see power.py and snapshots.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Modes:
    """Plain, not a dataclass: `dataclasses` alone takes as long to import as a call may take."""

    def __init__(self, **given: Any) -> None:
        """Raises ValueError for modes that there are not."""
        self.version = "7.1.8r168469"
        self.crlf = False
        self.language = ""
        """"de": messages in German; codes, keys and numbers as always."""
        self.delays_s: dict[str, float] = {}
        self.unlock_delay_s = 0.0
        """After a save, how long the session keeps its lock although VMState says saved."""
        self.hardware = True
        self.driver_warning = False
        self.slow_mode = ""
        """The reason in the log line "Attempting fall back to NEM"."""
        self.extension_packs: list[str] = []
        self.svc_idle_s = 5.0
        self.faults: list[dict[str, Any]] = []
        self.root = ""
        """Where the stand-in keeps what belongs to no registry; the folder of the modes file."""
        unknown = set(given) - set(vars(self))
        if unknown:
            raise ValueError(f"no such modes: {sorted(unknown)}")
        vars(self).update(given)

    @property
    def number(self) -> tuple[int, int, int]:
        plain = self.version.partition("r")[0].partition("_")[0]
        major, minor, patch = (int(part) for part in plain.split("."))
        return major, minor, patch

    @property
    def is_old(self) -> bool:
        """6.1: formats and option names before 7.0."""
        return self.number < (7, 0, 0)

    def delay_s(self, verb: str) -> float:
        return float(self.delays_s.get(verb, 0.0))


def load_modes(path: Path) -> Modes:
    given = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    modes = Modes(**given)
    modes.root = modes.root or str(path.parent)
    return modes


def fault_for(modes: Modes, counts: dict[str, int], verb: str) -> dict[str, Any] | None:
    """Count this call of `verb` and give the fault that is meant for it, if any."""
    counts[verb] = counts.get(verb, 0) + 1
    for fault in modes.faults:
        if fault["verb"] == verb and counts[verb] in fault.get("calls", [counts[verb]]):
            return fault
    return None
