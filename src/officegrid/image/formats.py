"""From the raw disk to the files that hypervisors take.

qcow2 (zstd) for QEMU and libvirt; a streamOptimized VMDK inside an OVA for VirtualBox; a dynamic
VHDX for Hyper-V. qemu-img writes them all. Where it puts the time or a random number into a file,
that place is set to a fixed value afterwards (VMware "Virtual Disk Format 5.0": the descriptor's
CID; "[MS-VHDX]": identifiers in the headers and the metadata, and the headers' checksums).
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

from officegrid.image.ext4 import fixed_uuid
from officegrid.image.run import BuildError, Runner

_VHDX_HEADERS = (64 * 1024, 128 * 1024)
_VHDX_HEADER_BYTES = 4096


def write_qcow2(run: Runner, disk: Path, target: Path) -> None:
    """Compressed; readable by QEMU 5.1 and newer. Raises BuildError."""
    run.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd",
         str(disk), str(target)],
        "The qcow2 file could not be written.",
    )  # fmt: skip


def write_vmdk(run: Runner, disk: Path, target: Path) -> None:
    """Compressed, for transport: VirtualBox unpacks it at import. Raises BuildError."""
    run.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized",
         str(disk), str(target)],
        "The VMDK could not be written.",
    )  # fmt: skip
    with target.open("r+b") as file:
        # Sparse extent header: descriptorOffset and descriptorSize, in sectors, at bytes 28 and 36.
        magic, offset, size = struct.unpack("<4s24xQQ", file.read(44))
        file.seek(offset * 512)
        text = file.read(size * 512).rstrip(b"\0")
        fixed, count = re.subn(rb"\nCID=[0-9a-f]{1,8}\n", b"\nCID=fffffffe\n", text)
        if magic != b"KDMV" or count != 1 or len(fixed) > size * 512:
            raise BuildError("The VMDK has no content identifier: qemu-img wrote another format.")
        file.seek(offset * 512)
        file.write(fixed.ljust(size * 512, b"\0"))


def write_vhdx(run: Runner, disk: Path, target: Path, name: str) -> None:
    """Grows as it is written to; not compressed. Raises BuildError."""
    run.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic",
         str(disk), str(target)],
        "The VHDX could not be written.",
    )  # fmt: skip
    with target.open("r+b") as file:
        for number, place in enumerate(_VHDX_HEADERS):
            file.seek(place)
            header = bytearray(file.read(_VHDX_HEADER_BYTES))
            if header[:4] != b"head":
                raise BuildError("The VHDX has no header: qemu-img wrote another format.")
            # MS-VHDX 2.2.2: Signature, Checksum, SequenceNumber, FileWriteGuid, DataWriteGuid, …
            # The two differ in their number alone; the higher one counts.
            struct.pack_into("<Q", header, 8, number + 1)
            header[16:48] = _guid(name, "file") + _guid(name, "data")
            header[4:8] = bytes(4)
            struct.pack_into("<I", header, 4, crc32c(bytes(header)))
            file.seek(place)
            file.write(header)
            _empty_log(file, header)
        _fix_disk_identifier(file, _guid(name, "disk"))


_PAGE_83 = bytes.fromhex("ab12cabee6b2234593efc309e000c746")
_METADATA_REGION = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_REGION_TABLE = 192 * 1024


def _empty_log(file: BinaryIO, header: bytearray) -> None:
    """MS-VHDX 2.3: without a LogGuid nothing of the log counts; what is left there is random."""
    guid, length, offset = struct.unpack_from("<16s4xIQ", header, 48)
    if guid != bytes(16):
        raise BuildError("The VHDX was not closed properly: its log is in use.")
    file.seek(offset)
    file.write(bytes(length))


def _fix_disk_identifier(file: BinaryIO, identifier: bytes) -> None:
    """MS-VHDX 2.6.2.5, Virtual Disk Identifier, found by the region and metadata tables."""
    file.seek(_REGION_TABLE)
    table = file.read(65_536)
    at = table.find(_METADATA_REGION)
    start = struct.unpack_from("<Q", table, at + 16)[0] if at > 0 else 0
    file.seek(start)
    metadata = file.read(65_536)
    entry = metadata.find(_PAGE_83)
    if not start or entry < 0:
        raise BuildError("The VHDX has no disk identifier: qemu-img wrote another format.")
    file.seek(start + struct.unpack_from("<I", metadata, entry + 16)[0])
    file.write(identifier)


def _guid(*parts: str) -> bytes:
    return bytes.fromhex(fixed_uuid(*parts).replace("-", ""))


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, as RFC 3720 B.4 has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
