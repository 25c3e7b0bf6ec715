"""PowerShell's general cmdlets and .NET types, as far as the driver's scripts use them."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from typing import Any

from officegrid.testing.hyperv.evaluator import Call, Evaluator, Signature
from officegrid.testing.hyperv.host import Host
from officegrid.testing.hyperv.store import alive
from officegrid.testing.hyperv.values import (
    Block,
    Named,
    PsError,
    Thing,
    text,
    to_json,
    truth,
    units,
)

_KILL = int(getattr(signal, "SIGKILL", signal.SIGTERM))
_WQL = re.compile(r"\s*(\w+)\s*=\s*'([^']*)'\s*")
_SERVICE_NUMBERS = {"Stopped": 1, "Running": 4, "Paused": 7}
_GROUPS = ("S-1-5-32-544", "S-1-5-32-578")


class Output:
    """Standard output, with its line ends."""

    def __init__(self, crlf: bool) -> None:
        self._end = "\r\n" if crlf else "\n"

    def line(self, value: object = "") -> None:
        sys.stdout.buffer.write((text(value) + self._end).encode("utf-8"))
        sys.stdout.buffer.flush()


class Basics:
    def __init__(self, host: Host, output: Output) -> None:
        self.host = host
        self.output = output

    def signatures(self) -> dict[str, Signature]:
        return {
            "Where-Object": Signature(_where, names="FilterScript", positions="FilterScript"),
            "ForEach-Object": Signature(_each, names="Process", positions="Process"),
            "ConvertTo-Json": Signature(
                self.to_json, names="InputObject Depth", switches="Compress"
            ),
            "Get-CimInstance": Signature(
                self.cim, names="ClassName Namespace Filter", positions="ClassName"
            ),
            "Get-Module": Signature(
                self.module, names="Name", switches="ListAvailable", positions="Name"
            ),
            "Get-Service": Signature(self.service, names="Name", positions="Name"),
            "Get-Process": Signature(self.process, names="Name Id", positions="Name"),
            "Stop-Process": Signature(self.stop_process, names="Id", switches="Force"),
        }

    def globals(self) -> dict[str, Any]:
        mode = Named(self.host.modes.language_mode, 0)
        version = "5.1.22621.2506" if self.host.modes.shell.startswith("5") else "7.4.6"
        return {
            "executioncontext": Thing(
                "EngineIntrinsics",
                {"SessionState": Thing("SessionState", {"LanguageMode": mode})},
            ),
            "psversiontable": {"PSVersion": version},
        }

    def types(self, shell: Evaluator) -> dict[str, Thing]:
        out = Thing("TextWriter", methods={"WriteLine": self.output.line})
        utf8 = Thing("UTF8Encoding")
        console = Thing("Console", {"Out": out}, setters={"OutputEncoding": lambda _: None})
        may = self.host.modes.may

        def replace(source: object, pattern: str, block: Block) -> str:
            def one(match: re.Match[str]) -> str:
                found = Thing("Match", {"Value": match[0]})
                return "".join(text(part) for part in shell.in_scope(block.body, args=[found]))

            return re.sub(pattern, one, units(text(source)))

        who = Thing("WindowsPrincipal", methods={"IsInRole": lambda sid: may and sid in _GROUPS})
        return {
            "Console": console,
            "Text.Encoding": Thing("Encoding", {"UTF8": utf8}),
            "regex": Thing("Regex", methods={"Replace": replace}),
            "Security.Principal.WindowsIdentity": Thing(
                "WindowsIdentity", methods={"GetCurrent": lambda: Thing("WindowsIdentity")}
            ),
            "Security.Principal.WindowsPrincipal": Thing(
                "WindowsPrincipal", methods={"cast": lambda _: who}
            ),
            "Security.Principal.SecurityIdentifier": Thing(
                "SecurityIdentifier", methods={"cast": text}
            ),
        }

    # -- cmdlets ------------------------------------------------------------------------------

    def to_json(self, call: Call) -> list[Any]:
        if not call.get("Compress"):
            raise PsError("NotImplemented", "NotImplemented", "only -Compress")
        return [to_json(call.get("InputObject"), self.host.modes.shell)]

    def cim(self, call: Call) -> list[Any]:
        name = text(call.get("ClassName")).lower()
        found = {
            "win32_process": self._processes,
            "msvm_computersystem": self._systems,
            "win32_computersystem": self._computer,
            "win32_operatingsystem": self._windows,
        }.get(name)
        if found is None:
            raise PsError(
                "InvalidArgument", "HRESULT 0x80041010,GetCimInstanceCommand", "Invalid class"
            )
        things = found(text(call.get("Namespace", "root\\cimv2")))
        condition = call.get("Filter")
        if condition is None:
            return things
        match = _WQL.fullmatch(text(condition))
        if match is None:
            raise PsError(
                "InvalidArgument", "HRESULT 0x80041017,GetCimInstanceCommand", "Invalid query"
            )
        wanted = match[2].lower()
        return [one for one in things if text(one.properties[match[1]]).lower() == wanted]

    def _processes(self, _: str) -> list[Thing]:
        return [
            Thing(
                "Win32_Process",
                {"Name": "vmwp.exe", "ProcessId": vm["pid"],
                 "CommandLine": f'"C:\\Windows\\System32\\vmwp.exe" {vm["id"]}'},
            )
            for vm in self._working()
        ]  # fmt: skip

    def _working(self) -> list[dict[str, Any]]:
        with self.host.store.locked():
            vms = list(self.host.store.vms().values())
        return [vm for vm in vms if alive(int(vm.get("pid", 0)))]

    def _systems(self, namespace: str) -> list[Thing]:
        if namespace.lower() != "root\\virtualization\\v2":
            raise PsError("ObjectNotFound", "HRESULT 0x8004100e", "Invalid namespace")
        shown = self.host.modes.sees_process_ids
        return [
            Thing(
                "Msvm_ComputerSystem",
                {"Name": vm["id"], "ProcessID": vm["pid"] if shown else None},
            )
            for vm in self._working()
        ]

    def _computer(self, _: str) -> list[Thing]:
        present = {"HypervisorPresent": self.host.modes.hypervisor}
        return [Thing("Win32_ComputerSystem", present)]

    def _windows(self, _: str) -> list[Thing]:
        return [Thing("Win32_OperatingSystem", {"Version": "10.0.22631"})]

    def module(self, call: Call) -> list[Any]:
        there = self.host.modes.module and text(call.get("Name")).lower() == "hyper-v"
        return [Thing("PSModuleInfo", {"Name": "Hyper-V"})] if there else []

    def service(self, call: Call) -> list[Any]:
        state = self.host.modes.service
        if text(call.get("Name")).lower() != "vmms" or not state:
            raise PsError(
                "ObjectNotFound", "NoServiceFoundForGivenName,GetServiceCommand", "no service"
            )
        status = Named(state, _SERVICE_NUMBERS[state])
        return [Thing("ServiceController", {"Name": "vmms", "Status": status})]

    def process(self, call: Call) -> list[Any]:
        pid = int(call.get("Id", 0))
        if not alive(pid):
            raise PsError("ObjectNotFound", "NoProcessFoundForGivenId", f"no process {pid}")
        ours = any(int(vm["pid"]) == pid for vm in self._working())
        name = "vmwp" if ours else "explorer"
        return [Thing("Process", {"Id": pid, "ProcessName": name})]

    def stop_process(self, call: Call) -> list[Any]:
        pid = int(call.get("Id"))
        os.kill(pid, _KILL)
        deadline_s = time.monotonic() + 5
        while alive(pid) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return []


def _where(call: Call) -> list[Any]:
    block = call.get("FilterScript")
    assert isinstance(block, Block)
    return [
        one for one in call.incoming or [] if truth(_only(call.shell.in_scope(block.body, _=one)))
    ]


def _each(call: Call) -> list[Any]:
    block = call.get("Process")
    assert isinstance(block, Block)
    outputs: list[Any] = []
    for one in call.incoming or []:
        outputs += call.shell.in_scope(block.body, _=one)
    return outputs


def _only(outputs: list[Any]) -> Any:
    return outputs[0] if len(outputs) == 1 else outputs
