"""Key presses, made as a driver of a keyboard makes them (SendInput)."""

from __future__ import annotations

import ctypes

SHIFT = 0x10
KEYBOARD, KEY_UP = 1, 2


class _Keyboard(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_ushort), ("scan", ctypes.c_ushort), ("flags", ctypes.c_uint),
        ("time", ctypes.c_uint), ("extra", ctypes.c_size_t),
    )  # fmt: skip


class _Union(ctypes.Union):
    _fields_ = (("keyboard", _Keyboard), ("size_of_mouse", ctypes.c_byte * 32))


class _Input(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_uint), ("input", _Union))


def press_shift() -> None:
    """Down and up: what a person does who wants the screen back."""
    user32 = ctypes.WinDLL("user32")
    for flags in (0, KEY_UP):
        event = _Input(KEYBOARD, _Union(keyboard=_Keyboard(key=SHIFT, flags=flags)))
        assert user32.SendInput(1, ctypes.byref(event), ctypes.sizeof(event)) == 1
