"""What the text of one setting must be: a bucket's name, a prefix, an address, tags.

Each raises BadValueError, which says what it must be, and returns the text to keep, if there is one.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from s3spool.config.values import BadValueError

#: The strftime letters that `destination.prefix` may use: those that mean the same in every locale.
PREFIX_FIELDS = ("Y", "m", "d", "H", "M", "S", "j")

_METADATA_BYTES = 2048 - 32  # S3's limit for all of an object's metadata, less what "mtime" takes
_TAGS_PER_OBJECT = 10
_TAG_KEY_LENGTH = 128
_TAG_VALUE_LENGTH = 256
_PREFIX_BYTES = 512  # half of S3's limit for a key; the other half is for the files' own names
_PORTS = range(1, 65536)


def bucket(text: str) -> str:
    """A general purpose bucket's name, or the ARN of an access point (of S3, Object Lambda or Outposts)."""
    if text.startswith("s3://"):
        raise BadValueError("must be the name alone, without s3://; what follows it belongs in destination.prefix")
    if text.startswith("arn:"):
        service = r"arn:aws[a-z-]*:s3(-object-lambda|-outposts)?:[a-z0-9-]*:[0-9]{12}"
        if not re.fullmatch(service + r"(:outpost[/:][\w-]{1,63})?[/:]accesspoint[/:][\w.-]{1,63}", text, re.ASCII):
            raise BadValueError("must be the ARN of an access point, arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME")
        return text
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text) or ".." in text:
        raise BadValueError(
            "must be 3 to 63 lower-case letters, digits, hyphens or single dots, none of these two at an end"
        )
    if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", text):
        raise BadValueError("must not look like an IP address")
    return text


def prefix(text: str) -> str:
    if text.startswith("/"):
        raise BadValueError('must not start with "/"; the first segment of a key stands alone')
    if any(segment in {"", ".", ".."} for segment in text.removesuffix("/").split("/")):
        raise BadValueError('must not hold empty, "." or ".." segments')
    filled = text.replace("{hostname}", "h")
    if "{" in filled or "}" in filled:
        raise BadValueError("may hold {hostname} and no other braces")
    for letter in re.findall("%(.?)", filled):
        if letter not in PREFIX_FIELDS and letter != "%":
            known = ", ".join(f"%{field}" for field in PREFIX_FIELDS)
            raise BadValueError(f"%{letter} is not one of {known} (or %% for a percent sign)")
    if len(text.encode()) > _PREFIX_BYTES:
        raise BadValueError(f"must not be longer than {_PREFIX_BYTES} bytes")
    return text


def endpoint_url(text: str) -> str:
    wanted = "must be http:// or https://, a host and perhaps a port, like https://s3.example.org:9000"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as exc:
        raise BadValueError(wanted) from exc
    if not text.lower().startswith(("http://", "https://")):
        raise BadValueError(wanted)
    if "@" in url.netloc:
        raise BadValueError("must not hold credentials; they come from AWS's credential chain")
    if url.path not in {"", "/"} or "?" in text or "#" in text:
        raise BadValueError("must not have a path, query or fragment; use destination.prefix for a folder")
    host = re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-f:.]+", url.hostname or "")
    if not host or port == 0 or url.netloc.endswith(":"):
        raise BadValueError(wanted)
    return text.removesuffix("/")


def listen_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    number = int(port) if re.fullmatch("[0-9]{1,5}", port) else 0
    if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]", host) or number not in _PORTS:
        raise BadValueError("must be HOST:PORT, like 127.0.0.1:9464 or [::1]:9464")
    return text


def account(text: str) -> str:
    if not re.fullmatch("[0-9]{12}", text):
        raise BadValueError("must be the 12 digits of an AWS account, in quotes")
    return text


def region(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", text):
        raise BadValueError("must be letters, digits and hyphens, like eu-central-1")
    return text


def name(text: str) -> str:
    """A storage class or a KMS key: what can stand in a header."""
    if not re.fullmatch(r"[\w:/.-]+", text, re.ASCII):
        raise BadValueError("must be letters, digits and any of _ : / . - without spaces")
    return text


def group(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_.@-]*\$?", text, re.ASCII | re.IGNORECASE):
        raise BadValueError("must be the name of a group")
    return text


def tags(pairs: dict[str, str]) -> None:
    if len(pairs) > _TAGS_PER_OBJECT:
        raise BadValueError(f"must not be more than {_TAGS_PER_OBJECT} tags, S3's limit")
    for key, value in pairs.items():
        if not 1 <= len(key) <= _TAG_KEY_LENGTH or len(value) > _TAG_VALUE_LENGTH:
            raise BadValueError(
                f"tag {key!r}: a key has 1 to {_TAG_KEY_LENGTH} characters, a value up to {_TAG_VALUE_LENGTH}"
            )
        if not re.fullmatch(r"[\w +\-=.:/@]*", key + value):
            raise BadValueError(f"tag {key!r}: may hold letters, digits, spaces and any of + - = . _ : / @")
        if key.lower().startswith("aws:"):
            raise BadValueError(f"tag {key!r}: names that start with aws: are reserved")


def metadata(pairs: dict[str, str]) -> None:
    names = {key.lower() for key in pairs}
    if "mtime" in names:
        raise BadValueError("'mtime' is s3spool's own, it keeps the file's time; choose another name")
    if len(names) < len(pairs):
        raise BadValueError("names that differ in case only are one header; choose others")
    for key, value in pairs.items():
        if not re.fullmatch(r"[\w!#$%&'*+\-.^`|~]+", key, re.ASCII):
            raise BadValueError(f"{key!r} cannot be a header's name; use letters, digits and hyphens")
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise BadValueError(f"the value of {key!r} must be printable ASCII without spaces at its ends")
    if sum(len(key) + len(value) for key, value in pairs.items()) > _METADATA_BYTES:
        raise BadValueError(f"must not be longer than {_METADATA_BYTES} bytes together, S3's 2 KB less our 'mtime'")
