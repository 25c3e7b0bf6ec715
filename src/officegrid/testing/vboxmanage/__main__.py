"""The stand-in's command line: `--modes FILE [--] SUB-COMMAND …`, as VBoxManage from there on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from officegrid.testing.vboxmanage import power, verbs
from officegrid.testing.vboxmanage.modes import Modes, fault_for, load_modes
from officegrid.testing.vboxmanage.session import Service
from officegrid.testing.vboxmanage.store import Home, read_json, write_json
from officegrid.testing.vboxmanage.texts import VerbFailedError, Writer

_DRIVER_WARNING = """\
WARNING: The vboxdrv kernel module is not loaded. Either there is no module
         available for the current kernel (6.1.0-amd64) or it failed to
         load. Please recompile the kernel module and install it by

           sudo /sbin/vboxconfig

         You will not be able to start VMs until this problem is fixed."""
_VERBS: dict[str, Callable[[power.Call, list[str]], None]] = {
    "list": verbs.list_things,
    "showvminfo": verbs.showvminfo,
    "createvm": verbs.createvm,
    "modifyvm": verbs.modifyvm,
    "storagectl": verbs.storagectl,
    "storageattach": verbs.storageattach,
    "setextradata": lambda call, words: verbs.extradata(call, words, change=True),
    "getextradata": lambda call, words: verbs.extradata(call, words, change=False),
    "guestproperty": verbs.guestproperty,
    "unregistervm": verbs.unregistervm,
    "startvm": power.startvm,
    "controlvm": power.controlvm,
    "discardstate": power.discardstate,
    "import": lambda call, words: _appliance("import_appliance", call, words),
    "export": lambda call, words: _appliance("export_appliance", call, words),
    "clonevm": lambda call, words: _appliance("clonevm", call, words),
    "snapshot": lambda call, words: _snapshot(call, words),
}


def _appliance(name: str, call: power.Call, words: list[str]) -> None:
    from officegrid.testing.vboxmanage import appliance  # tarfile: slow to import, rarely used

    getattr(appliance, name)(call, words)


def _snapshot(call: power.Call, words: list[str]) -> None:
    from officegrid.testing.vboxmanage import snapshots  # rarely used

    snapshots.snapshot(call, words)


def fault_name(words: list[str]) -> str:
    """What a fault calls this call."""
    if words[0] == "controlvm" and len(words) > 2:
        return words[2]
    if words[0] == "snapshot" and len(words) > 2:
        return f"snapshot {words[2]}"
    return "emergencystop" if "emergencystop" in words else words[0]


def main(arguments: list[str]) -> int:
    """One call. Returns VBoxManage's exit code."""
    modes_file = Path(arguments[arguments.index("--modes") + 1]).absolute()
    words = arguments[arguments.index("--modes") + 2 :]
    words = words[1:] if words[:1] == ["--"] else words
    modes = load_modes(modes_file)
    if not words:
        Writer(modes).err("Usage:\n(the usage text)")
        return 2
    if words[0] == "--version":
        Writer(modes).out((_DRIVER_WARNING + "\n" if modes.driver_warning else "") + modes.version)
        return 0
    if words[0] not in _VERBS:
        Writer(modes).error(f"Invalid command '{words[0]}'")
        return 2
    return _run(modes, modes_file, words)


def _run(modes: Modes, modes_file: Path, words: list[str]) -> int:
    counts_home = Home(Path(modes.root) / "ipc")
    counts_file = Path(modes.root) / "calls.json"
    with counts_home.locked():
        counts = read_json(counts_file)
        fault = fault_for(modes, counts, fault_name(words))
        write_json(counts_file, counts)
    service = Service(modes, modes_file)
    home = service.connect()
    try:
        _VERBS[words[0]](power.Call(modes, service, home, fault), words[1:])
    except VerbFailedError as failure:
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
