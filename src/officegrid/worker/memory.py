"""Keeps the worker's own memory small: it shares a desktop's VM with the program it runs."""

from __future__ import annotations

import contextlib
import ctypes
import sys

# glibc's malloc.h: parameters of mallopt(3).
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BYTES = 512 * 1024


def keep_memory_small() -> None:
    """Give buffers of blocks back to the system as soon as they are freed.

    By default glibc keeps a heap for every few threads and, once a large buffer was freed, serves
    the next ones from those heaps: a worker that moves 1 MiB blocks through five threads then
    holds on to some 60 MB it does not use. Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
