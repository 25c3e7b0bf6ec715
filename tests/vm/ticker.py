"""The smallest guest: 512 bytes of machine code that count on the first serial port.

The PC's firmware loads the first sector of the disk and jumps into it. The code halts until the
timer ticks (18.2 times a second), adds one to a 16-bit counter in BX, and writes it to COM1 as
four letters (A is 0, P is 15) and a newline. It boots in about a second under emulation and has
no disk of its own to damage: all that the driver tests need of a guest.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

# Intel 64 and IA-32 manual, volume 2; 16-bit mode, loaded at 0x7C00.
_BEFORE_LOOP = bytes.fromhex(
    "31c0"  # xor ax, ax
    "8ed8"  # mov ds, ax
    "8ed0"  # mov ss, ax
    "bc007c"  # mov sp, 0x7c00
    "fb"  # sti
    "31db"  # xor bx, bx
)
_TICK = bytes.fromhex(
    "f4"  # hlt
    "43"  # inc bx
    "b90400"  # mov cx, 4
    "baf803"  # mov dx, 0x3f8
)
_DIGIT = bytes.fromhex(
    "c1c304"  # rol bx, 4
    "88d8"  # mov al, bl
    "240f"  # and al, 0x0f
    "0441"  # add al, 'A'
    "ee"  # out dx, al
)
_NEWLINE = bytes.fromhex("b00aee")  # mov al, 10; out dx, al


def boot_sector() -> bytes:
    again_digit = bytes([0xE2, 256 - len(_DIGIT) - 2])  # loop
    body = _TICK + _DIGIT + again_digit + _NEWLINE
    again_tick = bytes([0xEB, 256 - len(body) - 2])  # jmp short
    code = _BEFORE_LOOP + body + again_tick
    return code.ljust(510, b"\0") + b"\x55\xaa"


def make_image(path: Path, megabytes: int = 4) -> Path:
    """A qcow2 disk that starts with the boot sector."""
    raw = path.with_suffix(".bin")
    raw.write_bytes(boot_sector().ljust(megabytes * 2**20, b"\0"))
    subprocess.run(
        ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True
    )
    raw.unlink()
    return path


def last_tick(console: Path) -> int:
    """The last whole number in the console's file; 0 when there is none yet."""
    try:
        lines = console.read_bytes().split(b"\n")[:-1]
    except OSError:
        return 0
    for line in reversed(lines):
        digits = line.strip()[-4:]
        if len(digits) == 4 and all(0x41 <= letter <= 0x50 for letter in digits):
            number = 0
            for letter in digits:
                number = number * 16 + letter - 0x41
            return number
    return 0
