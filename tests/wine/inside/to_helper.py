"""Sends the session helper's hidden window what Windows would send: python to_helper.py MSG W."""

from __future__ import annotations

import ctypes
import sys
from ctypes import wintypes

user32 = ctypes.WinDLL("user32", use_last_error=True)
user32.FindWindowW.restype = wintypes.HWND
user32.FindWindowW.argtypes = [wintypes.LPCWSTR, wintypes.LPCWSTR]
user32.SendMessageW.argtypes = [
    wintypes.HWND, wintypes.UINT, ctypes.c_size_t, ctypes.c_ssize_t
]  # fmt: skip
window = user32.FindWindowW(None, "Office Grid")
if not window:
    sys.exit("no helper has a window here")
user32.SendMessageW(window, int(sys.argv[1]), int(sys.argv[2]), 0)
