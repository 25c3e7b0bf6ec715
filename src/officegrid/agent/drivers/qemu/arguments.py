"""QEMU's command line for one VM.

Source of the words: QEMU 7.2, qemu-system-x86_64(1). Everything that shapes what the guest sees
is in `shape`, whose digest decides whether a saved state still fits.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.qemu.files import CONTROL_SOCKET, LOOK_SOCKET, Files
from officegrid.agent.drivers.qemu.options import QemuOptions
from officegrid.agent.host_id import vm_uuid

READY_PORT = "grid.ready.0"
READY_BUFFER = "ready"
READY_BUFFER_BYTES = 4096


def shape(settings: VmSettings, options: QemuOptions, accelerator: str) -> list[str]:
    """The arguments that make the guest's computer."""
    accel = f"tcg,thread=multi,tb-size={options.code_cache_mb}" if accelerator == "tcg" \
        else accelerator  # fmt: skip
    cpu = options.cpu_model or ("max" if accelerator == "tcg" else "host")
    words = ["-M", options.machine, "-accel", accel, "-cpu", cpu]
    words += ["-m", str(settings.memory_mb), "-smp", str(settings.cpus)]
    words += ["-uuid", str(vm_uuid(settings.folder, settings.name))]
    if options.kernel:
        words += ["-kernel", options.kernel]
        words += ["-initrd", options.initrd] if options.initrd else []
        words += ["-append", options.append]
    overlay = _quoted(Files(settings.folder).overlay)
    words += ["-drive", f"file={overlay},if=virtio,format=qcow2,cache=writeback,discard=unmap"]
    # It may be taken away once the guest has joined: there is a join code on it.
    if settings.seed_iso is not None and settings.seed_iso.exists():
        seed = _quoted(settings.seed_iso)
        words += ["-drive", f"file={seed},if=virtio,format=raw,readonly=on"]
    if options.network != "none":
        words += ["-netdev", _netdev(options.network)]
        words += ["-device", f"virtio-net-pci,netdev=net0,mac={mac_address(settings)},romfile="]
    words += ["-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"]
    words += ["-device", "virtio-serial-pci"]
    words += ["-device", f"virtserialport,chardev={READY_BUFFER},name={READY_PORT}"]
    return words + list(options.extra)


def command_line(
    settings: VmSettings, options: QemuOptions, accelerator: str, *, restoring: bool
) -> list[str]:
    """The whole command. It is run in the VM's folder (so that socket paths stay short), and it
    starts with the guest's processors halted."""
    files = Files(settings.folder)
    words = [options.binary, "-name", settings.name.replace(",", ",,")]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-S"]
    # Not a file: the port is as fast as memory, and a guest could fill the disk within seconds.
    words += ["-chardev", f"ringbuf,id={READY_BUFFER},size={READY_BUFFER_BYTES}"]
    words += ["-chardev", f"file,id=console,path={_quoted(files.console)},append=on"]
    words += shape(settings, options, accelerator)
    words += ["-serial", "chardev:console"]
    for name in (CONTROL_SOCKET, LOOK_SOCKET):
        words += ["-qmp", f"unix:{name},server=on,wait=off"]
    words += ["-pidfile", str(files.pid)]
    if options.sandbox:
        words += ["-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny,"
                              "elevateprivileges=deny"]  # fmt: skip
    if restoring:
        words += ["-incoming", "defer"]
    return words


def digest(settings: VmSettings, options: QemuOptions, accelerator: str) -> str:
    """Changes whenever a saved state would meet another computer than the one it was saved on."""
    words = shape(settings, options, accelerator)
    for path in (options.kernel, options.initrd):
        if path:
            words.append(_fingerprint(Path(path)))
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _fingerprint(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_size}:{found.st_mtime_ns}"


def mac_address(settings: VmSettings) -> str:
    """The same at every start, as the saved state needs, another one on each PC; in QEMU's range
    52:54:00."""
    mark = hashlib.sha256(vm_uuid(settings.folder, settings.name).bytes).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in mark[:3])


def _netdev(network: str) -> str:
    """The host's end of the guest's network card. QEMU runs no script for a tap: it exists."""
    kind, _, tap = network.partition(":")
    return f"tap,id=net0,ifname={tap},script=no,downscript=no" if kind == "tap" \
        else "user,id=net0,ipv6=off"  # fmt: skip


def _quoted(path: Path) -> str:
    """A comma within a value of an option is doubled."""
    return str(path).replace(",", ",,")
