"""Maps a path in the folder to a key in the bucket."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Collection
from urllib.parse import quote, unquote_to_bytes

from s3spool.errors import unfit

MAX_KEY_BYTES = 1024  # S3 user guide, "Object key naming": up to 1,024 bytes in UTF-8
_ODD = re.compile(r"[\x00-\x1f\x7f%\\\x80-\x9f\ud800-\udfff\u2028\u2029]")
_SAFE = "/-_.~"
# A path that is its own key, and a key that is its own URL: most of them. No segment begins with a dot.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_~-][A-Za-z0-9_.~-]*/)*[A-Za-z0-9_~-][A-Za-z0-9_.~-]*")


def key_of(path: str, prefix: str) -> str:
    """Return `prefix` + path, with odd names percent-encoded; `decoded` reverses that.

    `%XX` stands for bytes that are not UTF-8, control characters, line separators, the backslash (a slash to some
    stores), the dots of `.` and `..` segments and, in a path with any of these, the percent sign. "100%.txt" stays as
    it is; "100%41.txt" does not, because it could be an encoded name.

    Raises UploadError (permanent) when the key is longer than S3 allows.
    """
    key = prefix + (path if _PLAIN.fullmatch(path) else encoded(path))
    size = len(key) if key.isascii() else len(key.encode())
    if size > MAX_KEY_BYTES:
        cause = f"the key would have {size} bytes, S3 allows {MAX_KEY_BYTES}"
        raise unfit(path, "KeyTooLongError", cause, "shorten the name or destination.prefix")
    return key


def too_deep(directory: str, prefixes: Collection[str]) -> bool:
    """Return whether every key below this directory would be longer than S3 allows.

    `prefixes` are templates, one for each kind of file; the length of their strftime fields may change, so they do not
    count.
    """
    return all(_too_deep(directory, prefix) for prefix in prefixes)


def _too_deep(directory: str, prefix: str) -> bool:
    if 12 * len(directory) + len(prefix.encode()) < MAX_KEY_BYTES:  # a character is at most four bytes, each "%XX"
        return False
    shortest = len(_FIELD.sub("", prefix).encode())
    return shortest + len(encoded(f"{directory.rstrip('/')}/").encode()) >= MAX_KEY_BYTES


def encoded(path: str) -> str:
    """Return the path with odd names percent-encoded; `decoded(encoded(path)) == path` for every path."""
    if not _needs_encoding(path):
        return path
    segments = []
    for segment in path.split("/"):
        if segment in {".", ".."}:
            segments.append(segment.replace(".", "%2E"))
        else:
            segments.append(_ODD.sub(_percent, segment))
    return "/".join(segments)


def decoded(key: str) -> str:
    """Return the path that `encoded` turned into `key`."""
    if "%" not in key or not _ENCODED.search(key):
        return key
    return os.fsdecode(unquote_to_bytes(os.fsencode(key)))


_ENCODED = re.compile(r"%[0-9A-F]{2}")
_FIELD = re.compile(r"%.|\{hostname\}")


def _needs_encoding(path: str) -> bool:
    odd = _ODD.search(path)
    if odd is not None:
        # A lone percent sign stays, unless it could be part of an encoded byte.
        if odd.group() == "%" and not _ODD.search(path.replace("%", "")) and not _ENCODED.search(path):
            return _has_dot_segments(path)
        return True
    return _has_dot_segments(path)


def _has_dot_segments(path: str) -> bool:
    return "/." in f"/{path}" and any(segment in {".", ".."} for segment in path.split("/"))


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in os.fsencode(match.group()))


class Prefix:
    """`destination.prefix`: `{hostname}` is filled in once, strftime fields from each file's mtime (UTC)."""

    def __init__(self, template: str) -> None:
        self._template = template.replace("{hostname}", socket.gethostname())
        self._fixed = "%" not in self._template

    def of(self, mtime_s: float) -> str:
        return self._template if self._fixed else time.strftime(self._template, time.gmtime(mtime_s))


def url_quoted(key: str) -> str:
    """Return the key percent-encoded for a URL, with its slashes (SigV4 for S3 encodes once).

    libcurl resolves "." and ".." segments, also encoded ones: `key_of` and the configuration let none into a key.
    """
    return key if _PLAIN.fullmatch(key) else quote(key, safe=_SAFE)
