"""This process's memory: the C library's allocator, which keeps what threads have freed, and who may look into it."""

from __future__ import annotations

import ctypes
from typing import Any

_M_ARENA_MAX = -8  # <malloc.h>
_PR_SET_DUMPABLE = 4  # <linux/prctl.h>
_ARENAS = 2  # a heap a thread, glibc's default up to eight a CPU, cannot be given back in full


def keep_few_heaps() -> None:
    """To be called before threads are started: mallopt(3)."""
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return free memory to the kernel, which takes some milliseconds: malloc_trim(3)."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def hide() -> None:
    """No core dump, and no debugger or /proc/PID/environ for other processes of this user: keys are in memory."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
