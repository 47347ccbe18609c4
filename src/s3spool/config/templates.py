"""Values of `metadata` that hold something of the file: `{path}`, `{xattr:user.origin}`."""

from __future__ import annotations

import re
from string import Formatter

FIELDS = ("mtime", "size", "hostname", "path", "owner", "mode")
_XATTR = re.compile(r"xattr:user\.[\w.:+-]{1,200}", re.ASCII)


def parsed(value: str) -> list[tuple[str, str]]:
    """Pairs of literal text and the field behind it, "" for none; raises ValueError.

    `xattr:user.NAME` alone is short for `{xattr:user.NAME}`; `{{` and `}}` are braces.
    """
    if _XATTR.fullmatch(value):
        return [("", value)]
    try:
        parts = [*Formatter().parse(value)]
    except ValueError as exc:
        raise ValueError("a single brace must be doubled: {{ or }}") from exc
    found = []
    for literal, name, spec, conversion in parts:
        field = f"{name}:{spec}" if spec else name or ""
        is_known = name is None or field in FIELDS or _XATTR.fullmatch(field)
        if not is_known or conversion:
            known = ", ".join(f"{{{known}}}" for known in (*FIELDS, "xattr:user.NAME"))
            raise ValueError(f"may hold {known}; other braces must be doubled")
        found.append((literal, field))
    return found
