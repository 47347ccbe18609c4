"""How objects are stored: the options of [destination] as headers, as boto3's arguments, and as permissions."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlencode

from s3spool.config.schema import DestinationConfig

META = "x-amz-meta-"
_ARGUMENTS = {
    "content-type": "ContentType",
    "cache-control": "CacheControl",
    "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage",
    "x-amz-storage-class": "StorageClass",
    "x-amz-server-side-encryption": "ServerSideEncryption",
    "x-amz-server-side-encryption-aws-kms-key-id": "SSEKMSKeyId",
    "x-amz-acl": "ACL",
    "x-amz-expected-bucket-owner": "ExpectedBucketOwner",
    "x-amz-tagging": "Tagging",
    "x-amz-checksum-crc64nvme": "ChecksumCRC64NVME",
    "x-amz-checksum-crc32": "ChecksumCRC32",
    "x-amz-checksum-sha256": "ChecksumSHA256",
    "x-amz-object-lock-mode": "ObjectLockMode",
    "x-amz-object-lock-retain-until-date": "ObjectLockRetainUntilDate",
    "x-amz-object-lock-legal-hold": "ObjectLockLegalHoldStatus",
    "x-amz-request-payer": "RequestPayer",
    "content-md5": "ContentMD5",
    "if-none-match": "IfNoneMatch",
}
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


def arguments_of(headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Headers of an object or a part as boto3 takes them."""
    arguments: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower.startswith(META):
            metadata[lower.removeprefix(META)] = value
        else:
            arguments[_ARGUMENTS[lower]] = value
    return arguments | ({"Metadata": metadata} if metadata else {})


def retain_until(days: int, now_s: float) -> str:
    """The end of a retention period that begins now, as x-amz-object-lock-retain-until-date has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(math.ceil(now_s) + days * 86_400))


def mtime_text(mtime_ns: int) -> str:
    """Return seconds with nine decimals, the form that rclone and others read."""
    seconds, rest = divmod(abs(mtime_ns), 10**9)
    return f"{'-' if mtime_ns < 0 else ''}{seconds}.{rest:09d}"
