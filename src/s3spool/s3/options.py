"""How objects are stored: the options of [destination] as headers, as boto3's arguments, and as permissions."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from s3spool.config.schema import DestinationConfig

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

META = "x-amz-meta-"
Headers = tuple[tuple[str, str], ...]


def headers_of(destination: DestinationConfig) -> Headers:
    """What each PUT of an object carries, without what depends on the file or the time."""
    kind = destination.content_type
    headers = (
        ("Content-Type", "" if kind == "auto" else kind),
        ("Cache-Control", destination.cache_control),
        ("Content-Disposition", destination.content_disposition),
        ("Content-Encoding", destination.content_encoding),
        ("Content-Language", destination.content_language),
        ("x-amz-storage-class", destination.storage_class),
        ("x-amz-server-side-encryption", destination.sse),
        ("x-amz-server-side-encryption-aws-kms-key-id", destination.kms_key_id),
        ("x-amz-acl", destination.acl),
        *common_headers(destination),
        ("x-amz-object-lock-mode", destination.object_lock_mode),
        ("x-amz-object-lock-legal-hold", "ON" if destination.legal_hold else ""),
        ("x-amz-tagging", urlencode(destination.tags, quote_via=quote)),
    )
    return tuple((name, value) for name, value in headers if value)


def common_headers(destination: DestinationConfig) -> Headers:
    """Headers of the objects that parts carry as well."""
    owner, payer = destination.expected_bucket_owner, "requester" if destination.requester_pays else ""
    headers = (("x-amz-expected-bucket-owner", owner), ("x-amz-request-payer", payer))
    return tuple((name, value) for name, value in headers if value)


def grants_of(destination: DestinationConfig) -> list[str]:
    """The permissions that an upload with these options needs."""
    more = {
        "s3:PutObjectTagging": destination.tags,
        "s3:PutObjectAcl": destination.acl,
        "s3:PutObjectRetention": destination.object_lock_mode,
        "s3:PutObjectLegalHold": destination.legal_hold,
    }
    return ["s3:PutObject", *(name for name, needed in more.items() if needed)]


def arguments_of(client: S3Client, operation: str, headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return headers of an object or a part as boto3's operation, like CreateMultipartUpload, takes them."""
    shape: Any = client.meta.service_model.operation_model(operation).input_shape
    wire = {name: member.serialization for name, member in shape.members.items()}
    names = {it["name"].lower(): name for name, it in wire.items() if it.get("location") == "header"}
    arguments: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for header, value in headers:
        name = header.lower()
        if name.startswith(META):
            metadata[name.removeprefix(META)] = value
        else:
            arguments[names[name]] = value
    return arguments | ({"Metadata": metadata} if metadata else {})


def retain_until(days: int, now_s: float) -> str:
    """The end of a retention period that begins now, as x-amz-object-lock-retain-until-date has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(math.ceil(now_s) + days * 86_400))


def mtime_text(mtime_ns: int) -> str:
    """Return seconds with nine decimals, the form that rclone and others read."""
    seconds, rest = divmod(abs(mtime_ns), 10**9)
    return f"{'-' if mtime_ns < 0 else ''}{seconds}.{rest:09d}"
