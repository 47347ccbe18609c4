"""Text for log lines and terminals: names made printable, secrets masked, objects made plain.

Strangers choose the names of files. A name may hold bytes that are not UTF-8 (as surrogate escapes), newlines, terminal
escapes or direction marks; none of them reaches a terminal or breaks a line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from types import NoneType
from typing import Any

MASK = "***"
_SCALARS = frozenset((int, float, bool, NoneType))
_DEPTH = 6  # deeper than any field; ends the walk through a structure that contains itself

_SECRET_NAME = re.compile("secret|passw|token|authori[sz]ation|credential|private_?key", re.IGNORECASE)

# Plain `in` tests come first: almost no text holds one of these, and the patterns below are slow.
_SUSPICIOUS = ("authorization", "signature", "x-amz-", "awsaccesskeyid", "secret", "session", "token", "passw", "://")
_SECRET_TEXT = (
    # A header takes the rest of its line: the scheme and its parameters may hold spaces.
    re.compile(r"""(authorization['"]?\s*[=:>]\s*['"]?)[^'"\r\n<]+""", re.IGNORECASE),
    # Query parameters, headers, XML elements, environment and configuration lines.
    re.compile(
        r"""((?:x-amz-(?:signature|security-token|credential)|awsaccesskeyid|signature|signatureprovided
              |aws_secret_access_key|secret_?access_?key|(?:aws_)?session_?token)
             ['"]?\s*(?:[=:>]|%3d)\s*['"]?)[^&\s'"<>,;]+""",
        re.IGNORECASE | re.VERBOSE,
    ),
    # The metadata service, SSO and credential processes answer in JSON: "Token": "..."
    re.compile(r"""(\\?["'](?:\w*token|passw\w*)\\?["']\s*:\s*\\?["'])(?:[^"'\\]|\\[^"'])+""", re.IGNORECASE),
    # http://user:password@proxy; the password may hold slashes and at signs, so a path with one is masked as well. Not
    # longer than this: a text that holds "://a:" again and again would take seconds.
    re.compile(r"""(://[^/\s:@]*:)[^\s"'<>]{1,256}(?=@)"""),
    re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_NEEDS_QUOTES = re.compile(r'[\s"=\\]')


def plain_fields(fields: Mapping[str, object], depth: int = 0) -> dict[str, Any]:
    """`fields` as JSON-able values without secrets; strings may still hold surrogates."""
    # One search for all texts: a line for each file has six.
    search = _is_suspicious("\n".join([value for value in fields.values() if type(value) is str]))
    return {
        name: MASK
        if _is_secret(name)
        else value
        if type(value) in _SCALARS or (type(value) is str and not search)
        else masked(value)
        if type(value) is str
        else plain(value, depth)
        for name, value in fields.items()
    }


def plain(value: object, depth: int = 0) -> Any:
    """`value` as JSON can hold it; other objects become text."""
    if type(value) is str:
        return masked(value)
    if isinstance(value, Enum):
        value = value.value
    if type(value) in _SCALARS:
        return value
    if depth < _DEPTH and isinstance(value, Mapping):
        return plain_fields({_text(name): item for name, item in value.items()}, depth + 1)
    if depth < _DEPTH and isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth + 1) for item in value]
    return masked(_text(value))


def masked(text: str) -> str:
    """`text` without keys, tokens, signatures and passwords that stand beside their name."""
    if not _is_suspicious(text):
        return text
    for pattern in _SECRET_TEXT:
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def _is_suspicious(text: str) -> bool:
    lowered = text.lower()
    return any([mark in lowered for mark in _SUSPICIOUS])  # noqa: C419 - a generator takes four times as long


def legible(value: Any) -> Any:
    r"""A plain value whose strings are valid UTF-8: other bytes are written `\xNN`."""
    if isinstance(value, str):
        return _SURROGATE.sub(lambda match: _escape(match[0]), value)
    if isinstance(value, list):
        return [legible(item) for item in value]
    if isinstance(value, dict):
        return {legible(name): legible(item) for name, item in value.items()}
    return value


def shown(text: str) -> str:
    """`text` for a person: one printable line, in quotes where its beginning or end would not be clear."""
    if text and text.isprintable() and not _NEEDS_QUOTES.search(text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def printable(text: str) -> str:
    r"""`text` with everything a terminal would act on, or not show, as `\n`, `\x1b`, `\u2028`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def printable_json(json: str) -> str:
    """JSON in which the characters that a terminal would obey are escapes: DEL, C1, direction marks."""
    if json.isprintable():
        return json
    return "".join(char if char.isprintable() or char == "\n" else _json_escape(char) for char in json)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is not UTF-8, as os.fsdecode() hands it over
        return f"\\x{ord(char) - 0xDC00:02x}"
    if "\x80" <= char <= "\xff":  # else written like such a byte
        return f"\\u{ord(char):04x}"
    return char.encode("unicode_escape").decode()


def _text(value: object) -> str:
    try:
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, bytes | os.PathLike):
            return os.fsdecode(value)
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}"
        return str(value)
    except Exception as exc:  # noqa: BLE001 - a foreign __str__ may raise anything, and the line must come out
        return f"<{type(value).__name__} without text: {type(exc).__name__}>"


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None
