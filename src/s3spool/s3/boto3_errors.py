"""Translates the exceptions of boto3 into UploadError."""

from __future__ import annotations

import re

import botocore.exceptions
import botocore.parsers

from s3spool.errors import Scope, UploadError
from s3spool.s3.error_table import NETWORK
from s3spool.s3.errors import from_code, unreadable_answer

# Botocore raises these for an answer that it cannot parse: XML nested too deep, an invalid number or date.
_UNREADABLE = (botocore.parsers.ResponseParserError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
_USER = re.compile(r"(\w+://)[^/\s]*@")
# Every exception of a boto3 call that the network or the server can cause.
FAILURES = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, *_UNREADABLE)


def translated(exc: Exception, path: str, operation: str = "upload") -> UploadError:
    """Return the UploadError for an exception of boto3."""
    if isinstance(exc, botocore.exceptions.ClientError):
        error = exc.response.get("Error", {})
        meta = exc.response.get("ResponseMetadata", {})
        code = error.get("Code", "")
        status = meta.get("HTTPStatusCode", 0)
        if code.isdigit():  # a HEAD has no body to take the code from
            status, code = int(code), ""
        return from_code(status, code, error.get("Message", ""), path, meta.get("HTTPHeaders"), operation)
    if isinstance(exc, botocore.exceptions.NoCredentialsError | botocore.exceptions.PartialCredentialsError):
        return from_code(0, "NoCredentials", str(exc), path, operation=operation)
    if isinstance(exc, _UNREADABLE) and not isinstance(exc, botocore.exceptions.BotoCoreError):
        return unreadable_answer(operation, path, _why_unreadable(exc))
    if isinstance(exc, OSError) and not isinstance(exc, botocore.exceptions.BotoCoreError):
        # Some exceptions of botocore are OSErrors too.
        return UploadError(operation, path, type(exc).__name__, str(exc), scope=Scope.FILE)
    unreachable = isinstance(
        exc,
        botocore.exceptions.EndpointConnectionError
        | botocore.exceptions.SSLError
        | botocore.exceptions.ProxyConnectionError,
    )
    scope = Scope.EVERYBODY if unreachable else Scope.UNKNOWN
    cause = _USER.sub(r"\1***@", str(exc))  # botocore misses passwords that occur elsewhere in a proxy's URL
    return UploadError(operation, path, type(exc).__name__, cause, scope=scope, hint=NETWORK)


def _why_unreadable(exc: Exception) -> str:
    return "XML nested too deep" if isinstance(exc, RecursionError) else f"{type(exc).__name__}: {exc}"
