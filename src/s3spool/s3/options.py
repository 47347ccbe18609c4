"""How objects are stored: the options of [destination] as headers, as boto3's arguments, and as permissions."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

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


class ObjectOptions(NamedTuple):
    """The settings of [destination] that say how objects are stored."""

    prefix: str
    storage_class: str
    sse: str
    kms_key_id: str
    acl: str
    expected_bucket_owner: str
    overwrite: str
    checksum: str
    tags: Mapping[str, str]
    metadata: Mapping[str, str]
    content_type: str = "auto"  # by the name; "" for none
    cache_control: str = ""
    content_disposition: str = ""
    content_encoding: str = ""
    content_language: str = ""
    object_lock_mode: str = ""
    object_lock_days: int = 0
    legal_hold: bool = False
    requester_pays: bool = False

    @property
    def headers(self) -> Headers:
        """What each PUT of an object carries, without what depends on the file or the time."""
        headers = [
            ("Content-Type", "" if self.content_type == "auto" else self.content_type),
            ("Cache-Control", self.cache_control),
            ("Content-Disposition", self.content_disposition),
            ("Content-Encoding", self.content_encoding),
            ("Content-Language", self.content_language),
            ("x-amz-storage-class", self.storage_class),
            ("x-amz-server-side-encryption", self.sse),
            ("x-amz-server-side-encryption-aws-kms-key-id", self.kms_key_id),
            ("x-amz-acl", self.acl),
            *self.common_headers,
            ("x-amz-object-lock-mode", self.object_lock_mode),
            ("x-amz-object-lock-legal-hold", "ON" if self.legal_hold else ""),
            ("x-amz-tagging", urlencode(self.tags, quote_via=quote)),
        ]
        return tuple((name, value) for name, value in headers if value)

    @property
    def common_headers(self) -> Headers:
        """Headers of the objects that parts carry as well."""
        payer = "requester" if self.requester_pays else ""
        headers = (("x-amz-expected-bucket-owner", self.expected_bucket_owner), ("x-amz-request-payer", payer))
        return tuple((name, value) for name, value in headers if value)

    @property
    def grants(self) -> list[str]:
        """The permissions that an upload with these options needs."""
        more = {
            "s3:PutObjectTagging": self.tags,
            "s3:PutObjectAcl": self.acl,
            "s3:PutObjectRetention": self.object_lock_mode,
            "s3:PutObjectLegalHold": self.legal_hold,
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
