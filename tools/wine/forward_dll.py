"""Write a DLL for 64-bit Windows that holds no code, only one export passed on to another DLL.

    python forward_dll.py OUT.dll ProcessPrng ADVAPI32.SystemFunction036

Wine 8 has no bcryptprimitives.dll, which pydantic-core imports for its one function ProcessPrng
(BOOL (BYTE *, SIZE_T), fills a buffer with random bytes). SystemFunction036 (RtlGenRandom) does
the same with the same arguments, so a forwarded export is all that is missing.

Format: Microsoft's "PE Format" page, sections "Optional Header" and "Export Directory Table".
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

SECTION_RVA = 0x1000
FILE_ALIGNMENT = 0x200
EXPORT_DIRECTORY_BYTES = 40


def export_section(dll: str, name: str, target: str) -> bytes:
    """The export directory, its three tables of one entry each, and the strings."""
    tables = SECTION_RVA + EXPORT_DIRECTORY_BYTES
    strings = tables + 4 + 4 + 4  # address, name pointer, ordinal (padded)
    dll_rva = strings
    name_rva = dll_rva + len(dll) + 1
    target_rva = name_rva + len(name) + 1
    directory = struct.pack(
        "<IIHHIIIIIII", 0, 0, 0, 0, dll_rva, 1, 1, 1, tables, tables + 4, tables + 8
    )
    # An address that points into the export section is a forwarder: text, not code.
    body = struct.pack("<IIHH", target_rva, name_rva, 0, 0)
    return directory + body + b"".join(text.encode() + b"\0" for text in (dll, name, target))


def dll_bytes(dll: str, name: str, target: str) -> bytes:
    section = export_section(dll, name, target)
    raw_bytes = -(-len(section) // FILE_ALIGNMENT) * FILE_ALIGNMENT
    dos = b"MZ" + bytes(58) + struct.pack("<I", 64)
    # AMD64, one section, 240 bytes of optional header, EXECUTABLE | LARGE_ADDRESS | DLL.
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x2022)
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        0x20B, 14, 0, 0, raw_bytes, 0, 0, 0, 0x1_8000_0000, 0x1000, FILE_ALIGNMENT,
        6, 0, 0, 0, 6, 0, 0, 0x2000, FILE_ALIGNMENT, 0, 2, 0x160,
        0x100000, 0x1000, 0x100000, 0x1000, 0, 16,
    )  # fmt: skip
    directories = struct.pack("<II", SECTION_RVA, len(section)) + bytes(15 * 8)
    header = struct.pack(
        "<8sIIIIIIHHI", b".rdata", len(section), SECTION_RVA, raw_bytes, FILE_ALIGNMENT,
        0, 0, 0, 0, 0x4000_0040,
    )  # fmt: skip
    head = dos + coff + optional + directories + header
    return head.ljust(FILE_ALIGNMENT, b"\0") + section.ljust(raw_bytes, b"\0")


if __name__ == "__main__":
    out, exported, forwarded = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    out.write_bytes(dll_bytes(out.name, exported, forwarded))
