"""The Content-Type of an object by its name: one table, the same on every machine."""

from __future__ import annotations

import re
from pathlib import Path

UNKNOWN = "application/octet-stream"
_UTF8 = "; charset=utf-8"


def _read(table: str) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for line in table.splitlines():
        if line.startswith("#"):
            continue
        kind, *parameter, names = re.split(r"(; \S+)? ", line, maxsplit=1)
        plain = kind.removesuffix("*") + (parameter[0] or "")
        for name in names.split():
            found[name] = plain, plain + _UTF8 if kind.endswith("*") else ""
    return found


#: extension -> type, and the type of content that is UTF-8, where only the content tells
TYPES = _read(Path(__file__).with_name("mime.types").read_text(encoding="utf-8"))


def content_type_of(path: str, body: bytes | None) -> str:
    """The type by the name's last extension, in upper or lower case.

    Text says that it is UTF-8 where `body`, the whole content, shows it; None: the content is not in memory.
    """
    name, _, extension = path.rpartition(".")
    if not name or name[-1] == "/":  # "README", ".jpg", "logs/.txt"
        return UNKNOWN
    kind, utf8 = TYPES.get(extension) or TYPES.get(extension.lower(), (UNKNOWN, ""))
    return utf8 if utf8 and body and (body.isascii() or _is_utf8(body)) else kind


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
