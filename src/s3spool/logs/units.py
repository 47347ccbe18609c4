"""Sizes and durations as people read them."""

from __future__ import annotations

_KIB = 1024
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_DECIMAL_S = 10  # below, a decimal place matters
_BAR = 20  # characters


def size(count: float) -> str:
    """`4 B`, `1.2 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _KIB:
            return f"{_short(count)} {unit}"
        count /= _KIB
    return f"{_short(count)} TiB"


def duration(seconds: float) -> str:
    """`0.04 s`, `12 s`, `3 min`, `1.5 h`, `4 days`."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < _MINUTE_S:
        return f"{_short(seconds) if seconds < _DECIMAL_S else f'{seconds:.0f}'} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{_short(seconds / _HOUR_S)} h"
    return f"{_short(seconds / _DAY_S)} days"


def bar(done: float, whole: float) -> str:
    """`[#####...............]  25% of 4 GiB`."""
    share = min(1.0, done / whole) if whole else 1.0
    full = int(_BAR * share)
    return f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%} of {size(whole)}"


def _short(number: float) -> str:
    """One decimal place, unless it is 0."""
    return f"{number:,.1f}".removesuffix(".0")
