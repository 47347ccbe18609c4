"""What S3, HTTP and libcurl say went wrong, and whom it concerns: the one table (docs/errors.md shows it)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from s3spool.errors import Scope, UploadError
from s3spool.s3.transport import Answer, Request

_TEXT_LENGTH = 500


class Rule(NamedTuple):
    """`sudden`: one occurrence pauses the destination; otherwise only a streak of them does."""

    scope: Scope
    permanent: bool = False
    sudden: bool = True
    hint: str = ""


_FILE = Rule(Scope.FILE)
_PARK = Rule(Scope.FILE, permanent=True)
_TRANSIENT = Rule(Scope.DESTINATION, sudden=False)
_OPTION = Rule(Scope.DESTINATION, sudden=False, hint="often an option of [destination] that the store does not take")
_GRANT = "grant s3:PutObject on this bucket and prefix (`s3spool check --policy` prints a policy)"
_KEYS = "check the credentials boto3 finds: `s3spool check` says where they come from"

BY_CODE: dict[str, Rule] = {
    # The destination, at once: no file could pass.
    "AccessDenied": Rule(Scope.DESTINATION, hint=_GRANT),
    "AllAccessDisabled": Rule(Scope.DESTINATION, hint="ask the owner of the bucket"),
    "AccessControlListNotSupported": Rule(Scope.DESTINATION, hint="remove destination.acl: the bucket takes no ACLs"),
    "AccountProblem": Rule(Scope.DESTINATION, hint="ask AWS support about the account"),
    "AuthorizationHeaderMalformed": Rule(Scope.DESTINATION, hint="set destination.region to the bucket's region"),
    "ExpiredToken": Rule(Scope.DESTINATION, hint=_KEYS),
    "ExpiredTokenException": Rule(Scope.DESTINATION, hint=_KEYS),
    "IllegalLocationConstraintException": Rule(Scope.DESTINATION, hint="set destination.region to the bucket's region"),
    "InvalidAccessKeyId": Rule(Scope.DESTINATION, hint=_KEYS),
    "InvalidBucketName": Rule(Scope.DESTINATION, hint="correct destination.bucket"),
    "InvalidEncryptionAlgorithmError": Rule(Scope.DESTINATION, hint="correct destination.sse"),
    "InvalidSecurity": Rule(Scope.DESTINATION, hint=_KEYS),
    "InvalidToken": Rule(Scope.DESTINATION, hint=_KEYS),
    "KMS.DisabledException": Rule(Scope.DESTINATION, hint="enable the key destination.kms_key_id"),
    "KMS.NotFoundException": Rule(Scope.DESTINATION, hint="correct destination.kms_key_id"),
    "MissingSecurityHeader": Rule(Scope.DESTINATION),
    "NoSuchBucket": Rule(Scope.DESTINATION, hint="create the bucket or correct destination.bucket"),
    "NoCredentials": Rule(Scope.DESTINATION, hint=_KEYS),
    "NotSignedUp": Rule(Scope.DESTINATION, hint="sign the account up for S3"),
    "PermanentRedirect": Rule(Scope.DESTINATION, hint="set destination.region to the bucket's region"),
    "TemporaryRedirect": Rule(Scope.DESTINATION, sudden=False, hint="the bucket is young: DNS has not followed yet"),
    "RequestTimeTooSkewed": Rule(Scope.DESTINATION, hint="set this machine's clock (timedatectl set-ntp true)"),
    "SignatureDoesNotMatch": Rule(Scope.DESTINATION, hint=_KEYS),
    "TokenRefreshRequired": Rule(Scope.DESTINATION, hint=_KEYS),
    "QuotaExceeded": Rule(Scope.DESTINATION, hint="make room in the bucket or raise its quota"),
    "StorageFull": Rule(Scope.DESTINATION, hint="make room on the S3 server"),
    "XMinioStorageFull": Rule(Scope.DESTINATION, hint="make room on the S3 server"),
    "XAmzContentSHA256Mismatch": _FILE,
    # The destination, if it goes on.
    "InternalError": _TRANSIENT,
    "InvalidArgument": _OPTION,
    "InvalidRequest": _OPTION,
    "OperationAborted": _FILE,
    "RequestTimeout": _TRANSIENT,
    "ServiceUnavailable": _TRANSIENT,
    "SlowDown": _TRANSIENT,
    "Throttling": _TRANSIENT,
    "ThrottlingException": _TRANSIENT,
    "BandwidthLimitExceeded": _TRANSIENT,
    # This file, perhaps better next time.
    "BadDigest": _FILE,
    "ConditionalRequestConflict": _FILE,
    "IncompleteBody": _FILE,
    "InvalidDigest": _FILE,
    "NoSuchUpload": _FILE,
    "InvalidPart": _FILE,
    "InvalidPartOrder": _FILE,
    # This file, never.
    "EntityTooLarge": Rule(Scope.FILE, permanent=True, hint="the store takes no object of this size"),
    "EntityTooSmall": _PARK,
    "InvalidStorageClass": Rule(Scope.DESTINATION, hint="correct destination.storage_class"),
    "InvalidTag": Rule(Scope.DESTINATION, hint="correct [destination.tags]"),
    "InvalidURI": _PARK,
    "KeyTooLongError": Rule(Scope.FILE, permanent=True, hint="shorten the name or destination.prefix"),
    "MetadataTooLarge": Rule(Scope.DESTINATION, hint="shorten [destination.metadata]"),
    "ObjectLocked": _PARK,
    "PreconditionFailed": _FILE,
}

BY_STATUS: dict[int, Rule] = {
    301: BY_CODE["PermanentRedirect"],
    302: Rule(Scope.DESTINATION, hint="correct destination.endpoint_url: it redirects elsewhere"),
    307: BY_CODE["TemporaryRedirect"],
    308: BY_CODE["PermanentRedirect"],
    400: _TRANSIENT,  # without a code of S3's it may be a proxy's, or that of a port which wants TLS
    401: Rule(Scope.DESTINATION, hint=_KEYS),
    403: Rule(Scope.DESTINATION, hint=_GRANT),
    404: Rule(Scope.DESTINATION, hint="correct destination.bucket or destination.endpoint_url"),
    405: Rule(Scope.DESTINATION, hint="correct destination.endpoint_url: this is no S3 server"),
    407: Rule(Scope.DESTINATION, hint="the proxy wants a password: set https_proxy"),
    408: _TRANSIENT,
    409: _FILE,
    411: _FILE,
    412: _FILE,
    413: Rule(Scope.FILE, permanent=True, hint="the store or a proxy before it takes no object of this size"),
    414: _PARK,
    429: _TRANSIENT,
    501: Rule(Scope.DESTINATION, hint="the store does not know one of the options in [destination]"),
    507: Rule(Scope.DESTINATION, hint="make room on the S3 server"),
}

_NET = "check network, DNS and destination.endpoint_url"
_TLS = "check the server's certificate and destination.ca_bundle"
# libcurl-errors(3); numbers, because this table is also read where pycurl is missing.
BY_CURL: dict[int, tuple[str, Rule]] = {
    5: ("COULDNT_RESOLVE_PROXY", Rule(Scope.DESTINATION, hint="check https_proxy")),
    6: ("COULDNT_RESOLVE_HOST", Rule(Scope.DESTINATION, hint=_NET)),
    7: ("COULDNT_CONNECT", Rule(Scope.DESTINATION, hint=_NET)),
    35: ("SSL_CONNECT_ERROR", Rule(Scope.DESTINATION, hint=_TLS)),
    60: ("PEER_FAILED_VERIFICATION", Rule(Scope.DESTINATION, hint=_TLS)),
    77: ("SSL_CACERT_BADFILE", Rule(Scope.DESTINATION, hint=_TLS)),
    28: ("OPERATION_TIMEDOUT", _TRANSIENT),
    55: ("SEND_ERROR", _TRANSIENT),
    56: ("RECV_ERROR", _TRANSIENT),
    52: ("GOT_NOTHING", _TRANSIENT),
    18: ("PARTIAL_FILE", _TRANSIENT),
    8: ("WEIRD_SERVER_REPLY", _TRANSIENT),
    1: ("UNSUPPORTED_PROTOCOL", _TRANSIENT),
    26: ("READ_ERROR", _FILE),
    42: ("ABORTED_BY_CALLBACK", _FILE),
    65: ("SEND_FAIL_REWIND", _TRANSIENT),
}


def from_curl(number: int, message: str, path: str) -> UploadError:
    """Translate the end of a transfer to which no answer came."""
    code, rule = BY_CURL.get(number, (f"CURL_{number}", _TRANSIENT))
    error = _error(path, code, message, rule)
    if rule.scope is Scope.FILE:
        error.operation = "read"  # our own callback gave up: the file could not be read on
    return error


def from_answer(request: Request, answer: Answer) -> UploadError:
    """An answer that is not a success."""
    code, message = parse_error(answer.body)
    return from_code(answer.status, code, message, request.path, answer.headers)


def from_code(
    status: int, code: str, message: str, path: str, headers: dict[str, str] | None = None, operation: str = "upload"
) -> UploadError:
    """From S3's code where it is known, else from the HTTP status; what neither table knows is transient."""
    rule = BY_CODE.get(code) or BY_STATUS.get(status) or _TRANSIENT
    error = _error(path, code or f"HTTP{status}", message or f"the server answered HTTP {status}", rule)
    error.operation = operation
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
        scope=Scope.DESTINATION,
        hint="destination.endpoint_url must lead to an S3 server, without a proxy that alters answers",
        sudden=False,
    )


def parse_error(body: bytes) -> tuple[str, str]:
    """(code, message) of S3's error document; empty where the body is something else."""
    if not body.lstrip().startswith(b"<") or b"<!DOCTYPE" in body or b"\0" in body:  # nothing of S3's has a DTD
        return "", ""
    try:
        root = ET.fromstring(body)  # noqa: S314 - DTDs are refused above, so no entities
    except ET.ParseError:
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
    except (KeyError, TypeError, ValueError):
        return None


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
        sudden=rule.sudden,
    )
