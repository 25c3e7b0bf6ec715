"""What the stand-in should be and do: a JSON file that tests write.

    {"shell": "5.1", "crlf": true, "bom": false, "noise": "", "language": "", "may": true,
     "module": true, "service": "Running", "hypervisor": true, "language_mode": "FullLanguage",
     "start_s": 0, "delays_s": {"Save-VM": 3}, "faults": [
        {"cmdlet": "Start-VM", "calls": [1, 2], "id": "OutOfMemory", "hresult": 2147942414}]}

`calls` counts that cmdlet from 1; without it every call is meant. A fault raises an error with
`category`, `id`, `hresult` and `message`; or, by `kind`: "hang" (for `for_s`), "die" (PowerShell
ends), "silent" (nothing is done), "lost" (it is done, then PowerShell ends), "fail_inside" (the
worker process fails with `status`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass
class Modes:
    shell: str = "5.1"
    """"5.1": Windows PowerShell; "7": PowerShell, which escapes less in JSON."""
    crlf: bool = True
    bom: bool = False
    noise: str = ""
    """Said before every answer, as a profile or a module might."""
    language: str = ""
    """"de": messages in German; error ids, categories and states as always."""
    may: bool = True
    """Is the account in Hyper-V Administrators?"""
    silent_without_right: bool = False
    """Without the right Get-VM lists nothing, instead of raising."""
    module: bool = True
    service: str = "Running"
    hypervisor: bool = True
    language_mode: str = "FullLanguage"
    switches: list[str] = field(default_factory=lambda: ["Default Switch"])
    sees_process_ids: bool = True
    """Does Msvm_ComputerSystem give ProcessID?"""
    sessions: bool = True
    """Does `-Command -` work? If not, it ends at once."""
    start_s: float = 0.0
    delays_s: dict[str, float] = field(default_factory=dict)
    linger_s: float = 0.05
    """How long a worker process stays after its VM is called saved or off."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    root: str = ""

    def delay_s(self, cmdlet: str) -> float:
        return float(self.delays_s.get(cmdlet, 0.0))


def load_modes(path: Path) -> Modes:
    given = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = {one.name for one in fields(Modes)}
    unknown = set(given) - known
    if unknown:
        raise ValueError(f"no such modes: {sorted(unknown)}")
    modes = Modes(**given)
    modes.root = modes.root or str(path.parent)
    return modes


def fault_for(modes: Modes, counts: dict[str, int], cmdlet: str) -> dict[str, Any] | None:
    """Count this call and give the fault that is meant for it, if any."""
    counts[cmdlet] = counts.get(cmdlet, 0) + 1
    for fault in modes.faults:
        if fault["cmdlet"] == cmdlet and counts[cmdlet] in fault.get("calls", [counts[cmdlet]]):
            return fault
    return None
