"""The process's memory: freed memory goes back to the kernel, and other processes cannot read it."""

from __future__ import annotations

import ctypes
from typing import Any

_M_ARENA_MAX = -8  # <malloc.h>
_PR_SET_DUMPABLE = 4  # <linux/prctl.h>
_ARENAS = 2  # glibc's default is a heap per thread, up to eight per CPU: it cannot be given back in full


def keep_few_heaps() -> None:
    """Call it before threads start: mallopt(3)."""
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return free memory to the kernel, which takes some milliseconds: malloc_trim(3)."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def hide() -> None:
    """Refuse core dumps, and debuggers of other processes of this user: secret keys are in memory."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
