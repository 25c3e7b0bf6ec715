"""What all cmdlets of one PowerShell share: modes, store, faults, and Hyper-V's errors."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from officegrid.testing.hyperv.evaluator import Call
from officegrid.testing.hyperv.modes import Modes, fault_for
from officegrid.testing.hyperv.store import NUMBERS, Store, read_json, write_json
from officegrid.testing.hyperv.values import Ended, Named, PsError, Thing, text

_GERMAN = {
    "notfound": 'Hyper-V hat keinen virtuellen Computer mit dem Namen "{0}" gefunden.',
    "state": "Der Vorgang kann im aktuellen Zustand des Objekts nicht ausgeführt werden.",
    "right": "Sie verfügen nicht über die erforderliche Berechtigung.",
    "start": '"{0}" konnte nicht gestartet werden. ({1})',
    "save": '"{0}" konnte nicht gespeichert werden. ({1})',
}
_ENGLISH = {
    "notfound": 'Hyper-V was unable to find a virtual machine with name "{0}".',
    "state": "The operation cannot be performed while the object is in its current state.",
    "right": "You do not have the required permission to complete this task.",
    "start": "'{0}' failed to start. ({1})",
    "save": "'{0}' failed to save. ({1})",
}


class Host:
    """One PowerShell on one PC."""

    def __init__(self, modes: Modes, modes_file: Path) -> None:
        self.modes = modes
        self.modes_file = modes_file
        self.store = Store(Path(modes.root))
        self.fault: dict[str, Any] = {}

    def say(self, key: str, *words: str) -> str:
        texts = _GERMAN if self.modes.language == "de" else _ENGLISH
        return texts[key].format(*words)

    def error(
        self, call: Call, category: str, error_id: str, message: str, hresult: int = 0x80131500
    ) -> PsError:
        """As the Hyper-V module raises it: the class of the cmdlet is a part of the id."""
        where = f"Microsoft.HyperV.PowerShell.Commands.{call.name.replace('-', '')}"
        return PsError(category, f"{error_id},{where}", message, hresult)

    def wrong_state(self, call: Call) -> PsError:
        return self.error(call, "InvalidArgument", "InvalidState", self.say("state"))

    def enter(self, call: Call) -> str:
        """Before every cmdlet of Hyper-V: rights and faults. Returns the kind of its fault."""
        fault = self.planned(call.name)
        kind = str(fault.get("kind", "error")) if fault else ""
        if kind == "hang":
            time.sleep(float(fault.get("for_s", 600)))
        if kind == "die":
            raise Ended
        if not self.modes.may and call.name != "Get-VM":
            raise self.error(call, "PermissionDenied", "AccessDenied", self.say("right"))
        if kind == "error":
            raise self.error(
                call,
                str(fault.get("category", "NotSpecified")),
                str(fault.get("id", "Unspecified")),
                str(fault.get("message", "Something went wrong.")),
                int(fault.get("hresult", 0x80131500)),
            )
        return kind

    def leave(self, kind: str) -> None:
        if kind == "lost":
            raise Ended

    def planned(self, cmdlet: str) -> dict[str, Any]:
        path = Path(self.modes.root) / "calls.json"
        with self.store.locked():
            counts = read_json(path)
            self.fault = fault_for(self.modes, counts, cmdlet) or {}
            write_json(path, counts)
        return self.fault

    # -- VMs ----------------------------------------------------------------------------------

    def vm_thing(self, vm: dict[str, Any]) -> Thing:
        state = self.store.state(vm)
        return Thing(
            "Microsoft.HyperV.PowerShell.VirtualMachine",
            {
                "Id": vm["id"].lower(),
                "Name": vm["name"],
                "State": Named(state, NUMBERS.get(state, 1)),
                "Status": "Operating normally",
                "Notes": vm["notes"],
                "Path": vm["path"],
                "ConfigurationLocation": vm["path"],
                "Generation": vm["generation"],
            },
        )

    def target(self, call: Call) -> dict[str, Any]:
        """The VM that -VM names, as it is now."""
        thing = call.get("VM")
        if not isinstance(thing, Thing) or not thing.kind.endswith("VirtualMachine"):
            raise PsError(
                "InvalidArgument", "ParameterArgumentValidationError", f"-VM: {text(thing)}"
            )
        with self.store.locked():
            self.store.reconcile()
            vm = self.store.get(thing.properties["Id"])
        if not vm:
            name = text(thing.properties["Name"])
            raise self.error(
                call, "InvalidArgument", "InvalidParameter", self.say("notfound", name)
            )
        if self.store.state(vm).endswith("Critical"):
            return {**vm, "state": self.store.state(vm)}
        return vm


def source_folder() -> str:
    return str(Path(__file__).resolve().parents[3])


def worker_environment(modes_file: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OFFICEGRID_STANDIN_MODES": str(modes_file),
        "OFFICEGRID_STANDIN_SOURCE": source_folder(),
    }
