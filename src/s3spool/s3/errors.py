"""Turns what S3, HTTP and libcurl say went wrong into an error that says whom it concerns, by `error_table`."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from s3spool.errors import Scope, UploadError
from s3spool.s3.error_table import BY_CODE, BY_CURL, BY_STATUS, TRANSIENT, Rule
from s3spool.s3.transport import Answer, Request

_TEXT_LENGTH = 500
_IDS = ("x-amz-request-id", "x-amz-id-2")  # what a provider's support asks for
_NO_DATE = (TypeError, ValueError, OverflowError)  # what the parser makes of a text that is none
_DENIED = re.compile(r"not authorized to perform: ([a-z0-9-]+:\w+)")  # AWS names the permission that is missing
_REDIRECTS = (301, 302, 303, 307, 308)
_NEVER = "redirects are not followed; destination.endpoint_url must be the address of S3 itself"
SKEW_S = 300.0  # S3 refuses signatures that are 15 minutes off; from here on the clock is worth a word
_CHECKSUM_REFUSED = {"InvalidRequest", "InvalidArgument", "BadRequest", "MalformedHeader"}


def from_curl(number: int, message: str, path: str) -> UploadError:
    """Translate the end of a transfer to which no answer came."""
    if "CONNECT tunnel failed" in message:
        number = 97  # CURLE_PROXY: libcurl says RECV_ERROR
    code, rule = BY_CURL.get(number, (f"CURL_{number}", TRANSIENT))
    error = _error(path, code, message or f"libcurl ended with its error {number}", rule)
    if rule.scope is Scope.FILE:
        error.operation = "read"  # our own callback gave up: the file could not be read on
    return error


def from_answer(request: Request, answer: Answer) -> UploadError:
    """An answer that is not a success."""
    code, message = parse_error(answer.body)
    if not code and (text := _one_line(answer.body[:_TEXT_LENGTH].decode("utf-8", "replace"))):
        message = f"the server answered HTTP {answer.status}: {text}"
    return from_code(answer.status, code, message, request.path, answer.headers)


def from_code(
    status: int, code: str, message: str, path: str, headers: dict[str, str] | None = None, operation: str = "upload"
) -> UploadError:
    """From S3's code where it is known, else from the HTTP status; what neither table knows is transient."""
    rule = BY_CODE.get(code) or BY_STATUS.get(status) or TRANSIENT
    cause = message or f"the server answered HTTP {status}"
    if denied := _DENIED.search(message):
        rule = rule._replace(hint=f"grant {denied[1]} (`s3spool check --policy` prints a policy)")
    location = (headers or {}).get("location", "")
    if location and status in _REDIRECTS and code not in BY_CODE:
        cause, hint = _redirect(location)
        rule = rule._replace(hint=hint)
    elif code not in BY_CODE:
        # Nobody has explained it yet: all that is known may help who has to.
        facts = [f"HTTP {status}"] if code and message and status else []
        facts += [f"{name} {value}" for name in _IDS if (value := (headers or {}).get(name))]
        cause += f" ({', '.join(facts)})" if facts else ""
    error = _error(path, code or f"HTTP{status}", cause, rule)
    error.operation = operation
    error.status = status
    if skew := _skew(status, headers or {}):
        error.hint += f"; {skew}" if error.hint else skew
    error.retry_after_s = retry_after_s(headers or {})
    return error


def untrusted(request: Request, why: str) -> UploadError:
    return untrusted_success("confirm", request.path, why)


def untrusted_success(operation: str, path: str, why: str) -> UploadError:
    """A 200 that proves nothing: a captive portal, a broken proxy, another server than S3."""
    return UploadError(
        operation,
        path,
        "Unconfirmed",
        f"the server answered success but {why}",
        hint="destination.endpoint_url must lead to an S3 server, without a proxy that alters answers",
    )


def unreadable_answer(operation: str, path: str, why: str) -> UploadError:
    """An answer that boto3 cannot make sense of."""
    error = untrusted_success(operation, path, "")
    error.code = "UnreadableAnswer"
    error.cause = f"the server's answer is not S3's ({_one_line(why)})"
    return error


def parse_error(body: bytes) -> tuple[str, str]:
    """(code, message) of S3's error document; empty where the body is something else."""
    if not body.lstrip().startswith(b"<") or b"<!DOCTYPE" in body or b"\0" in body:  # nothing of S3's has a DTD
        return "", ""
    try:
        root = ET.fromstring(body)  # noqa: S314 - DTDs are refused above, so no entities
    except (ET.ParseError, LookupError, ValueError):  # the latter two: an encoding that nobody knows
        return "", ""
    found = {re.sub(r"^\{.*\}", "", child.tag): (child.text or "") for child in root.iter()}
    return _one_line(found.get("Code", "")), _one_line(found.get("Message", ""))


def retry_after_s(headers: dict[str, str]) -> float | None:
    """Seconds from Retry-After (RFC 9110, 10.2.3): a number, or a date compared with the server's own Date."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(headers["date"])).total_seconds())
    except (KeyError, *_NO_DATE):
        return None


def _redirect(location: str) -> tuple[str, str]:
    """Cause and hint. Only the host is told: the rest may be long, or hold a signature."""
    try:
        url = urlsplit(location)
        port = f":{url.port}" if url.port else ""
    except ValueError:
        return "the server redirects elsewhere", _NEVER
    if url.scheme not in {"http", "https"} or not url.hostname:
        return "the server redirects to another path", _NEVER
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    where = _one_line(f"{url.scheme}://{host}{port}")
    return f"the server redirects to {where}", f'{_NEVER}: if S3 answers there, set it to "{where}"'


def _skew(status: int, headers: dict[str, str]) -> str:
    """What is wrong with our clock, where that may be why a signature was refused; measured with the server's Date."""
    if status not in {400, 401, 403} or "date" not in headers:
        return ""
    try:
        ahead_s = time.time() - parsedate_to_datetime(headers["date"]).timestamp()
    except _NO_DATE:
        return ""
    if abs(ahead_s) < SKEW_S:
        return ""
    return f"this machine's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's"


def _one_line(text: str) -> str:
    """What a server says goes into logs and the ledger: one line, and not a long one."""
    return " ".join(text.split())[:_TEXT_LENGTH]


def _error(path: str, code: str, message: str, rule: Rule) -> UploadError:
    return UploadError(
        "upload",
        path,
        code,
        message,
        scope=rule.scope,
        permanent=rule.permanent,
        hint=rule.hint,
    )


def mismatch(request: Request, why: str) -> UploadError:
    """The error for an object whose checksum differs from that of the file."""
    return UploadError("confirm", request.path, "BadDigest", f"S3 has other bytes than were read: {why}")


def conflict(path: str, key: str) -> UploadError:
    """The error for another object at this key while overwriting is forbidden."""
    return UploadError(
        "upload",
        path,
        "PreconditionFailed",
        f'another object is at {key} and destination.overwrite = "never"',
        scope=Scope.FILE,  # the object was looked at
        permanent=True,
        hint="rename the file, or remove the object",
    )


def is_about_checksum(error: UploadError) -> bool:
    """Whether the store refused the checksum; old stores answer NotImplemented to its header."""
    about = error.code in _CHECKSUM_REFUSED and "checksum" in error.cause.lower()
    return about or error.code == "NotImplemented"
