"""Metadata that differs from file to file: `metadata` values with `{path}`, `{mtime}`, `{xattr:user.NAME}`."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from s3spool.config.templates import parsed
from s3spool.errors import unfit
from s3spool.s3.content import Content
from s3spool.s3.options import META, Headers, mtime_text

MAX_BYTES = 2048  # S3 user guide, "Working with object metadata": all names and values together
_OF_THE_NAME = {"mtime", "size", "path", "hostname"}  # known without asking the file again
_ODD = re.compile(rb"[^ -~]|%|^ | $")


class FileMetadata:
    """The templates of one rule. Immutable, so thread-safe."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        parts = {name.lower(): parsed(value) for name, value in metadata.items()}
        of_file = {name: found for name, found in parts.items() if any(field for _, field in found)}
        #: the other values, with single braces
        self.constant = {
            name: "".join(text for text, _ in found) for name, found in parts.items() if name not in of_file
        }
        self._templates = [(META + name, found) for name, found in of_file.items()]
        self.any = bool(of_file)
        self._constant_bytes = sum(len(name) + len(value) for name, value in self.constant.items())
        self._hostname = socket.gethostname()
        #: what has to be read from the file (folder/attributes.py)
        self.attributes = frozenset(field for found in of_file.values() for _, field in found if field) - _OF_THE_NAME

    def headers(self, content: Content) -> Headers:
        """Raises UploadError (permanent) where it is more than S3 takes; a value without any text is left out."""
        fields = {
            "": "",
            "path": _printable(content.path),
            "size": str(content.size),
            "mtime": mtime_text(content.identity.mtime_ns),
            "hostname": self._hostname,
            **{name: _printable(value) for name, value in content.attributes.items()},
        }
        rendered = [
            (name, "".join(text + fields.get(field, "") for text, field in parts)) for name, parts in self._templates
        ]
        length = sum(len(name) - len(META) + len(value) for name, value in rendered) + self._constant_bytes
        length += len("mtime") + len(fields["mtime"])
        if length > MAX_BYTES:
            cause = f"its metadata would have {length} bytes, S3 allows {MAX_BYTES}"
            hint = "shorten what destination.metadata takes from the file"
            raise unfit(content.path, "MetadataTooLarge", cause, hint)
        return tuple((name, value) for name, value in rendered if value)


def _printable(text: str) -> str:
    """Printable ASCII; all other bytes and the percent sign become %XX, as do spaces at the ends."""
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip():
        return text
    return _ODD.sub(lambda match: b"%%%02X" % match.group()[0], os.fsencode(text)).decode()
