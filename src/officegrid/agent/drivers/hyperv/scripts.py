"""The PowerShell that the driver runs: a handful of fixed scripts, one line each.

All of it works in Windows PowerShell 5.1 and in PowerShell 7, and holds nothing but printable
ASCII without a double quote: it survives every code page and the command line of Windows.
Values come in through `literal` only. Cmdlets: the Hyper-V module's reference on Microsoft Learn.
"""

from __future__ import annotations

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.hyperv.options import Options

LANGUAGE_MODE = "OfficeGrid.LanguageMode"
"""Answered instead of JSON where a policy restricts PowerShell: then it may call no methods."""
HYPERV_ADMINISTRATORS = "S-1-5-32-578"
ADMINISTRATORS = "S-1-5-32-544"
_LOW_WEIGHT = 10
"""Of 1 to 10000, 100 being what every VM has: other VMs of this PC go first."""


def literal(value: str) -> str:
    """A PowerShell expression for this text, whatever it holds.

    Between single quotes nothing is special but the quote itself, for which PowerShell also takes
    four typographic characters; these and all that is not printable ASCII go in by number.
    """
    parts: list[str] = []
    plain = ""
    for unit in _utf16_units(value):
        if 0x20 <= unit <= 0x7E and unit != 0x22:
            plain += "''" if unit == 0x27 else chr(unit)
            continue
        if plain:
            parts.append(f"'{plain}'")
            plain = ""
        parts.append(f"[char]{unit}")
    if plain or not parts:
        parts.append(f"'{plain}'")
    if len(parts) == 1 and parts[0].startswith("'"):
        return parts[0]
    return f"(-join @({', '.join(parts)}))"


def _utf16_units(value: str) -> list[int]:
    data = value.encode("utf-16-le", "surrogatepass")
    return [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2)]


def wrapped(body: str, begin: str, end: str) -> str:
    """One statement that runs `body` and prints, between the lines `begin` and `end`, JSON:
    {"value": [outputs]} or {"error": {category, id, hresult, message}}.

    Error texts are localised, so the parts of the error record that are not are passed on. All
    that is not ASCII is escaped, so that the console's code page does not matter.
    """
    return (
        "& { $ErrorActionPreference = 'Stop'; $ProgressPreference = 'SilentlyContinue'; "
        "$WarningPreference = 'SilentlyContinue'; $ConfirmPreference = 'None'; "
        "if ([string]$ExecutionContext.SessionState.LanguageMode -ne 'FullLanguage') "
        f"{{ {_mark(begin)}; '{LANGUAGE_MODE}'; {_mark(end)} }} else {{ "
        "try { [Console]::OutputEncoding = [Text.Encoding]::UTF8 } catch { }; "
        "$reply = @{ }; "
        f"try {{ $reply.value = @(& {{ {body} }}) }} "
        "catch { $reply.error = @{ category = [string]$_.CategoryInfo.Category; "
        "id = [string]$_.FullyQualifiedErrorId; hresult = $_.Exception.HResult; "
        "message = [string]$_.Exception.Message } }; "
        "$json = ConvertTo-Json -InputObject $reply -Compress -Depth 6; "
        "$json = [regex]::Replace($json, '[^ -~]', "
        "{ '\\u{0:x4}' -f [int][char]$args[0].Value }); "
        f"[Console]::Out.WriteLine({_mark(begin)}); [Console]::Out.WriteLine($json); "
        f"[Console]::Out.WriteLine({_mark(end)}) }} }}"
    )


def _mark(text: str) -> str:
    """In two pieces: an echo of the script, or an error that quotes it, does not hold the mark."""
    return f"('{text[:6]}' + '{text[6:]}')"


# -- looking ----------------------------------------------------------------------------------

_MAY = (
    "$who = [Security.Principal.WindowsPrincipal]"
    "[Security.Principal.WindowsIdentity]::GetCurrent(); "
    "$may = $who.IsInRole([Security.Principal.SecurityIdentifier]"
    f"'{HYPERV_ADMINISTRATORS}') -or "
    f"$who.IsInRole([Security.Principal.SecurityIdentifier]'{ADMINISTRATORS}')"
)


def look(vm_id: str, name: str, *, pids: bool) -> str:
    """All VMs with this id or name, whether we may see VMs at all, and our VM's processes.

    Without the right to, some releases of Get-VM raise nothing and list nothing.
    """
    return (
        f"{_MAY}; $vms = @(Get-VM | Where-Object {{ [string]$_.Id -eq {literal(vm_id)} "
        f"-or $_.Name -eq {literal(name)} }} | ForEach-Object {{ @{{ id = [string]$_.Id; "
        "name = [string]$_.Name; state = [string]$_.State; number = [int]$_.State; "
        "status = [string]$_.Status; notes = [string]$_.Notes; path = [string]$_.Path; "
        "config = [string]$_.ConfigurationLocation } }); "
        f"{_pids(vm_id) if pids and vm_id else '$pids = @()'}; "
        "@{ may = $may; vms = $vms; pids = $pids }"
    )


def _pids(vm_id: str) -> str:
    """Hyper-V itself tells the worker process of a VM; else vmwp.exe has the id as argument
    (command lines of other accounts can be read by administrators only)."""
    by_vm = literal(f"Name = '{vm_id}'")
    by_name = literal("Name = 'vmwp.exe'")
    return (
        "$pids = @(Get-CimInstance -Namespace 'root\\virtualization\\v2' "
        f"-ClassName Msvm_ComputerSystem -Filter {by_vm} -ErrorAction SilentlyContinue "
        "| Where-Object { $_.ProcessID -gt 0 } | ForEach-Object { [int]$_.ProcessID }); "
        "if ($pids.Count -eq 0) { $pids = @(Get-CimInstance -ClassName Win32_Process "
        f"-Filter {by_name} -ErrorAction SilentlyContinue "
        f"| Where-Object {{ $_.CommandLine -like {literal(f'*{vm_id}*')} }} "
        "| ForEach-Object { [int]$_.ProcessId }) }"
    )


def examine(switch: str) -> str:
    """What `detect` judges by. Changes nothing."""
    found = (
        f"$network = @(Get-VMSwitch -ErrorAction SilentlyContinue "
        f"| Where-Object {{ $_.Name -eq {literal(switch)} }}).Count -gt 0"
        if switch
        else "$network = $true"
    )
    return (
        f"{_MAY}; $module = @(Get-Module -ListAvailable -Name 'Hyper-V').Count -gt 0; "
        "$service = @(Get-Service -Name 'vmms' -ErrorAction SilentlyContinue "
        "| ForEach-Object { [string]$_.Status }); $network = $false; "
        f"if ($module -and $may) {{ {found} }}; "
        "$system = Get-CimInstance -ClassName Win32_ComputerSystem; "
        "$windows = Get-CimInstance -ClassName Win32_OperatingSystem; "
        "@{ may = $may; module = $module; service = $service; network = $network; "
        "hypervisor = [bool]$system.HypervisorPresent; windows = [string]$windows.Version; "
        "shell = [string]$PSVersionTable.PSVersion }"
    )


# -- verbs ------------------------------------------------------------------------------------


def _vm(vm_id: str) -> str:
    return f"$vm = Get-VM -Id {literal(vm_id)}; $state = [string]$vm.State"


def _now(vm_id: str) -> str:
    return f"Get-VM -Id {literal(vm_id)} | ForEach-Object {{ [string]$_.State }}"


def warm(vm_id: str) -> str:
    """Loads the module and its connection to the service."""
    return f"$null = Get-VM -Id {literal(vm_id)} -ErrorAction SilentlyContinue"


def start(vm_id: str, fit: str) -> str:
    """`fit` runs only if the VM is off: a saved one keeps the settings it was saved with."""
    settle = f"if ($state -eq 'Off') {{ {fit} }}; " if fit else ""
    return f"{_vm(vm_id)}; {settle}if ($state -ne 'Running') {{ Start-VM -VM $vm }}"


def pause(vm_id: str) -> str:
    """Gives the state afterwards, as does `resume`."""
    return f"{_vm(vm_id)}; if ($state -ne 'Paused') {{ Suspend-VM -VM $vm }}; {_now(vm_id)}"


def resume(vm_id: str) -> str:
    return f"{_vm(vm_id)}; if ($state -ne 'Running') {{ Resume-VM -VM $vm }}; {_now(vm_id)}"


def save(vm_id: str) -> str:
    return f"{_vm(vm_id)}; if ($state -ne 'Saved') {{ Save-VM -VM $vm }}"


def turn_off(vm_id: str) -> str:
    return (
        f"{_vm(vm_id)}; if ($state -notlike '*Saved*' -and $state -ne 'Off' "
        "-and $state -ne 'OffCritical') { Stop-VM -VM $vm -TurnOff -Force }"
    )


def discard(vm_id: str) -> str:
    return f"{_vm(vm_id)}; if ($state -like '*Saved*') {{ Remove-VMSavedState -VM $vm }}"


def remove(vm_id: str) -> str:
    return f"Remove-VM -VM (Get-VM -Id {literal(vm_id)}) -Force"


def list_all() -> str:
    """All VMs: {id, name, notes, path}."""
    return (
        "@(Get-VM | ForEach-Object { @{ id = [string]$_.Id; name = [string]$_.Name; "
        "notes = [string]$_.Notes; path = [string]$_.Path } })"
    )


def end_worker(pid: int) -> str:
    """Kill one worker process, if the number still is one's."""
    return (
        f"Get-Process -Id {pid} -ErrorAction SilentlyContinue "
        "| Where-Object { $_.ProcessName -eq 'vmwp' } "
        "| ForEach-Object { Stop-Process -Id $_.Id -Force }"
    )


# -- making -----------------------------------------------------------------------------------


def create(settings: VmSettings, options: Options, disk: str, place: str, notes: str) -> str:
    """A VM on a differencing disk; gives its id, which also goes behind `notes`. The disk goes
    into New-VM itself: that is what puts it first in the boot order of generation 2."""
    assert settings.image is not None
    image = settings.image.absolute()
    switch = f" -SwitchName {literal(options.switch)}" if options.switch else ""
    stop = "Save" if options.host_shutdown == "save" else "TurnOff"
    firmware = ""
    if options.generation == 2:
        firmware = "; Set-VMFirmware -VM $vm " + (
            "-EnableSecureBoot On -SecureBootTemplate 'MicrosoftUEFICertificateAuthority'"
            if options.secure_boot
            else "-EnableSecureBoot Off"
        )
    return (
        f"$null = New-VHD -Path {literal(disk)} -ParentPath {literal(str(image))} "
        f"-Differencing; $vm = New-VM -Name {literal(settings.name)} "
        f"-Generation {options.generation} -MemoryStartupBytes {_bytes(settings)} "
        f"-VHDPath {literal(disk)} -Path {literal(place)}{switch}; "
        f"$notes = {literal(notes)} + ' ' + [string]$vm.Id; "
        "Set-VM -VM $vm -Notes $notes -AutomaticStartAction Nothing "
        f"-AutomaticStopAction {stop} -AutomaticCheckpointsEnabled $false "
        f"-CheckpointType Disabled -SnapshotFileLocation {literal(place)} "
        f"-SmartPagingFilePath {literal(place)}{firmware}; {fit(settings)}; "
        "@{ id = [string]$vm.Id }"
    )


def fit(settings: VmSettings) -> str:
    """Bring `$vm`, which is off, to the settings."""
    seed = ""
    if settings.seed_iso is not None:
        seed = f"; Add-VMDvdDrive -VM $vm -Path {literal(str(settings.seed_iso.absolute()))}"
    return (
        f"Set-VM -VM $vm -StaticMemory -MemoryStartupBytes {_bytes(settings)} "
        f"-ProcessorCount {settings.cpus}; "
        f"Set-VMProcessor -VM $vm -Maximum {settings.cpu_cap_percent} "
        f"-RelativeWeight {_LOW_WEIGHT}; "
        f"Get-VMDvdDrive -VM $vm | Remove-VMDvdDrive{seed}"
    )


def _bytes(settings: VmSettings) -> int:
    # Hyper-V takes memory in steps of 2 MB.
    return (settings.memory_mb + settings.memory_mb % 2) * 1024 * 1024
