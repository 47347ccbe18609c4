"""Rules for the text of single settings. Each returns the value to keep, or raises ValueError, which says the rule."""

from __future__ import annotations

import ipaddress
import re
import shlex
from urllib.parse import parse_qs, urlsplit

from s3spool.config.templates import parsed

#: The strftime letters that `destination.prefix` may use: those that mean the same in every locale.
PREFIX_FIELDS = ("Y", "m", "d", "H", "M", "S", "j")

# A pattern, and what matches it.
ACCOUNT = (r"^[0-9]{12}\Z", "must be the 12 digits of an AWS account, in quotes")
REGION = (r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z", "must be letters, digits and hyphens, like eu-central-1")
HEADER = (r"(?a)^[\w:/.-]+\Z", "must be letters, digits and any of _ : / . - without spaces")
CODINGS = (r"(?a)^(?!.*aws-chunked)[\w.-]+( ?, ?[\w.-]+)*\Z", "must be a name like gzip, or several with commas")
LANGUAGES = (r"^[A-Za-z0-9-]+( ?, ?[A-Za-z0-9-]+)*\Z", "must be a language like en or pt-BR, or several with commas")
GROUP = (r"(?ai)^[a-z_][a-z0-9_.@-]*\$?\Z", "must be the name of a group")
_ARN = r"arn:aws[a-z-]*:s3(-object-lambda|-outposts)?:[a-z0-9-]*:[0-9]{12}(:outpost[/:][\w-]{1,63})?"
_LAST_PORT = 65535
_PREFIX_BYTES = 512  # half of S3's limit for a key; the other half is for the files' own names
_TAGS_PER_OBJECT, _TAG_KEY_LENGTH, _TAG_VALUE_LENGTH = 10, 128, 256  # S3's limits
_TOKEN_LENGTH = 16
_METADATA_BYTES = 2048 - 32  # S3's limit for all of an object's metadata, less the bytes of "mtime"


def bucket(text: str) -> str:
    """The name of a general purpose bucket, or the ARN of an access point (of S3, Object Lambda or Outposts)."""
    _require(
        not text.startswith("s3://"),
        "must be the name alone, without s3://; what follows it belongs in destination.prefix",
    )
    if text.startswith("arn:"):
        wanted = "must be the ARN of an access point, arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME"
        _require(re.fullmatch(_ARN + r"[/:]accesspoint[/:][\w.-]{1,63}", text, re.ASCII), wanted)
        return text
    _require(
        re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text) and ".." not in text,
        "must be 3 to 63 lower-case letters, digits, hyphens or single dots, and begin and end with a letter or digit",
    )
    _require(not re.fullmatch(r"[0-9]+(\.[0-9]+){3}", text), "must not look like an IP address")
    return text


def prefix(text: str) -> str:
    _require(not text.startswith("/"), 'must not start with "/"; the first segment of a key stands alone')
    segments = text.removesuffix("/").split("/")
    _require(not {"", ".", ".."} & {*segments}, 'must not hold empty, "." or ".." segments')
    filled = text.replace("{hostname}", "h")
    _require("{" not in filled and "}" not in filled, "may hold {hostname} and no other braces")
    known = ", ".join(f"%{field}" for field in PREFIX_FIELDS)
    for letter in re.findall("%(.?)", filled):
        _require(letter in {*PREFIX_FIELDS, "%"}, f"%{letter} is not one of {known} (or %% for a percent sign)")
    _require(len(text.encode()) <= _PREFIX_BYTES, f"must not be longer than {_PREFIX_BYTES} bytes")
    return text


def endpoint_url(text: str) -> str:
    wanted = "must be http:// or https://, a host and perhaps a port, like https://s3.example.org:9000"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as exc:
        raise ValueError(wanted) from exc
    _require(text.lower().startswith(("http://", "https://")), wanted)
    _require("@" not in url.netloc, "must not hold credentials; they come from AWS's credential chain")
    only_host = url.path in {"", "/"} and not {"?", "#"} & {*text}
    _require(only_host, "must not have a path, query or fragment; use destination.prefix for a folder")
    host = re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-f:.]+", url.hostname or "")
    _require(host and port != 0 and not url.netloc.endswith(":"), wanted)
    return text.removesuffix("/")


def ledger_url(text: str) -> str:
    """Empty, or the URL of a PostgreSQL database."""
    if not text:
        return text
    _require(text.startswith("postgresql://"), "must be postgresql://USER@HOST/DATABASE, or empty for SQLite")
    try:
        url = urlsplit(text)
        secret = url.password is not None or "password" in parse_qs(url.query)
    except ValueError as exc:
        raise ValueError("must be postgresql://USER@HOST/DATABASE") from exc
    _require(not secret, "must not hold a password; it comes from PGPASSFILE, or the systemd credential pgpass")
    return text


def listen_address(text: str) -> str:
    found = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", text)
    _require(found and 1 <= int(found[2]) <= _LAST_PORT, "must be HOST:PORT, like 127.0.0.1:9464 or [::1]:9464")
    return text


def split_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port of a `listen_address`."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host; of names only localhost is trusted to say so."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise ValueError(f"is no command line: {exc}") from exc
    _require(words and words[0].startswith("/"), "must begin with the absolute path of a program")
    return text


def token(text: str) -> str:
    fits = len(text) >= _TOKEN_LENGTH and text.isascii() and text.isprintable() and " " not in text
    _require(fits, f"must be {_TOKEN_LENGTH} or more printable ASCII characters without spaces")
    return text


def tags(found: dict[str, str]) -> dict[str, str]:
    _require(len(found) <= _TAGS_PER_OBJECT, f"must not be more than {_TAGS_PER_OBJECT} tags, S3's limit")
    lengths = f"a key has 1 to {_TAG_KEY_LENGTH} characters, a value up to {_TAG_VALUE_LENGTH}"
    for key, value in found.items():
        fits = 1 <= len(key) <= _TAG_KEY_LENGTH and len(value) <= _TAG_VALUE_LENGTH
        _require(fits, f"tag {key!r}: {lengths}")
        allowed = re.fullmatch(r"[\w +\-=.:/@]*", key + value)
        _require(allowed, f"tag {key!r}: may hold letters, digits, spaces and any of + - = . _ : / @")
        _require(not key.lower().startswith("aws:"), f"tag {key!r}: names that start with aws: are reserved")
    return found


def metadata(found: dict[str, str]) -> dict[str, str]:
    names = {key.lower() for key in found}
    _require("mtime" not in names, "'mtime' is s3spool's own, it keeps the file's time; choose another name")
    _require(len(names) == len(found), "names that differ in case only are one header; choose others")
    for key, value in found.items():
        is_header = re.fullmatch(r"[\w!#$%&'*+\-.^`|~]+", key, re.ASCII)
        _require(is_header, f"{key!r} cannot be a header's name; use letters, digits and hyphens")
        is_plain = value.isascii() and value.isprintable() and value == value.strip()
        _require(is_plain, f"the value of {key!r} must be printable ASCII without spaces at its ends")
        try:
            parsed(value)
        except ValueError as exc:
            raise ValueError(f"the value of {key!r}: {exc}") from None
    length = sum(len(key) + len(value) for key, value in found.items())
    _require(length <= _METADATA_BYTES, f"must not be longer than {_METADATA_BYTES} bytes together (S3's 2 KB)")
    return found


def content_type(text: str) -> str:
    kind = r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(; ?[\w-]+=([\w.:+-]+|\"[^\"\\\\]*\"))*"
    _require(
        text in {"", "auto"} or (text.isascii() and re.fullmatch(kind, text)),
        'must be a type like "image/png" or "text/html; charset=utf-8", auto, or empty',
    )
    return text


def header(text: str) -> str:
    _require(text.isascii() and text == text.strip(), "must be ASCII without spaces at its ends")
    return text


def _require(condition: object, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
