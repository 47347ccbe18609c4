"""Translates failures of S3, HTTP, libcurl and boto3 into UploadError, by the rules of `error_table`."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import botocore.exceptions
import botocore.parsers

from s3spool.errors import Scope, UploadError, unfit
from s3spool.s3.error_table import BY_CODE, BY_CURL, BY_STATUS, NETWORK, TRANSIENT, Rule
from s3spool.s3.transport import Answer, Request

_TEXT_LENGTH = 500
_IDS = ("x-amz-request-id", "x-amz-id-2")  # a provider's support asks for these
_NO_DATE = (TypeError, ValueError, OverflowError)  # raised for a text that is no date
_DENIED = re.compile(r"not authorized to perform: ([a-z0-9-]+:\w+)")  # AWS names the missing permission
_REDIRECTS = (301, 302, 303, 307, 308)
_NEVER = "redirects are not followed; destination.endpoint_url must be the address of S3 itself"
SKEW_S = 300.0  # S3 refuses signatures that are 15 minutes off; a hint mentions smaller differences already
_CHECKSUM_REFUSED = {"InvalidRequest", "InvalidArgument", "BadRequest", "MalformedHeader"}
_USER = re.compile(r"(\w+://)[^/\s]*@")
# Botocore raises these for an answer that it cannot parse: XML nested too deep, an invalid number or date.
_UNREADABLE = (botocore.parsers.ResponseParserError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
# Every exception of a boto3 call that the network or the server can cause.
FAILURES = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, *_UNREADABLE)
_UNREACHABLE = (
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.SSLError,
    botocore.exceptions.ProxyConnectionError,
)
_NO_CREDENTIALS = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)


def from_curl(number: int, message: str, path: str) -> UploadError:
    """Return the error for a transfer that libcurl ended without an answer."""
    if "CONNECT tunnel failed" in message:
        number = 97  # CURLE_PROXY: libcurl says RECV_ERROR
    code, rule = BY_CURL.get(number, (f"CURL_{number}", TRANSIENT))
    operation = "read" if rule.scope is Scope.FILE else "upload"  # our read callback ended the transfer
    return _by_rule(rule, operation, path, code, message or f"libcurl ended with its error {number}")


def from_boto3(exc: Exception, path: str, operation: str = "upload") -> UploadError:
    """Return the error for an exception of boto3 (one of FAILURES)."""
    if isinstance(exc, botocore.exceptions.ClientError):
        told = exc.response.get("Error", {})
        meta = exc.response.get("ResponseMetadata", {})
        code, status = told.get("Code", ""), meta.get("HTTPStatusCode", 0)
        if code.isdigit():  # a HEAD has no body with a code
            status, code = int(code), ""
        return from_code(status, code, told.get("Message", ""), path, meta.get("HTTPHeaders"), operation)
    if isinstance(exc, _NO_CREDENTIALS):
        return from_code(0, "NoCredentials", str(exc), path, operation=operation)
    if isinstance(exc, botocore.exceptions.BotoCoreError):
        scope = Scope.EVERYBODY if isinstance(exc, _UNREACHABLE) else Scope.UNKNOWN
        cause = _USER.sub(r"\1***@", str(exc))  # botocore misses a password that occurs elsewhere in a proxy's URL
        return UploadError(operation, path, type(exc).__name__, cause, scope=scope, hint=NETWORK)
    why = "XML nested too deep" if isinstance(exc, RecursionError) else f"{type(exc).__name__}: {exc}"
    error = untrusted_success(operation, path, "")
    error.code = "UnreadableAnswer"
    error.cause = f"the server's answer is not S3's ({_one_line(why)})"
    return error


def from_answer(request: Request, answer: Answer) -> UploadError:
    """Return the error for an answer that is not a success."""
    code, message = parse_error(answer.body)
    if not code and (text := _one_line(answer.body[:_TEXT_LENGTH].decode("utf-8", "replace"))):
        message = f"the server answered HTTP {answer.status}: {text}"
    return from_code(answer.status, code, message, request.path, answer.headers)


def from_code(
    status: int, code: str, message: str, path: str, headers: dict[str, str] | None = None, operation: str = "upload"
) -> UploadError:
    """Return the error by S3's code, else by the HTTP status; an error in neither table is transient."""
    rule = BY_CODE.get(code) or BY_STATUS.get(status) or TRANSIENT
    cause = message or f"the server answered HTTP {status}"
    if denied := _DENIED.search(message):
        rule = rule._replace(hint=f"grant {denied[1]} (`s3spool check --policy` prints a policy)")
    location = (headers or {}).get("location", "")
    if location and status in _REDIRECTS and code not in BY_CODE:
        cause, hint = _redirect(location)
        rule = rule._replace(hint=hint)
    elif code not in BY_CODE:
        # The code is unknown: show all facts.
        facts = [f"HTTP {status}"] if code and message and status else []
        facts += [f"{name} {value}" for name in _IDS if (value := (headers or {}).get(name))]
        cause += f" ({', '.join(facts)})" if facts else ""
    error = _by_rule(rule, operation, path, code or f"HTTP{status}", cause)
    error.status = status
    if skew := _skew(status, headers or {}):
        error.hint += f"; {skew}" if error.hint else skew
    error.retry_after_s = retry_after_s(headers or {})
    return error


def _by_rule(rule: Rule, operation: str, path: str, code: str, cause: str) -> UploadError:
    return UploadError(operation, path, code, cause, rule.scope, rule.permanent, rule.hint)


def untrusted(request: Request, why: str) -> UploadError:
    """Return the error for a 200 that does not confirm this request."""
    return untrusted_success("confirm", request.path, why)


def untrusted_success(operation: str, path: str, why: str) -> UploadError:
    """Return the error for a 200 that proves nothing, as of a captive portal or a broken proxy."""
    return UploadError(
        operation,
        path,
        "Unconfirmed",
        f"the server answered success but {why}",
        hint="destination.endpoint_url must lead to an S3 server, without a proxy that alters answers",
    )


def parse_error(body: bytes) -> tuple[str, str]:
    """Return (code, message) of S3's error document; ("", "") for any other body."""
    if not body.lstrip().startswith(b"<") or b"<!DOCTYPE" in body or b"\0" in body:  # S3 sends no DTD
        return "", ""
    try:
        root = ET.fromstring(body)  # noqa: S314 - DTDs are refused above, so no entities
    except (ET.ParseError, LookupError, ValueError):  # the latter two: an unknown encoding
        return "", ""
    found = {re.sub(r"^\{.*\}", "", child.tag): (child.text or "") for child in root.iter()}
    return _one_line(found.get("Code", "")), _one_line(found.get("Message", ""))


def retry_after_s(headers: dict[str, str]) -> float | None:
    """Return the seconds of Retry-After (RFC 9110, 10.2.3): a number, or a date minus the server's own Date."""
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
    """Return cause and hint. Both show the host only: the rest may be long, or hold a signature."""
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
    """Compare our clock with the server's Date; "" if it cannot explain a refused signature."""
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
    """Shorten a server's text to one line of limited length, for logs and the ledger."""
    return " ".join(text.split())[:_TEXT_LENGTH]


def mismatch(request: Request, why: str) -> UploadError:
    """Return the error for an object whose checksum differs from that of the file."""
    return UploadError("confirm", request.path, "BadDigest", f"S3 has other bytes than were read: {why}")


def conflict(path: str, key: str) -> UploadError:
    """Return the error for another object at this key while overwriting is forbidden."""
    cause = f'another object is at {key} and destination.overwrite = "never"'  # a HEAD showed the object
    return unfit(path, "PreconditionFailed", cause, "rename the file, or remove the object", operation="upload")


def is_about_checksum(error: UploadError) -> bool:
    """Return whether the store refused the checksum; old stores answer NotImplemented to its header."""
    about = error.code in _CHECKSUM_REFUSED and "checksum" in error.cause.lower()
    return about or error.code == "NotImplemented"
