"""How objects are stored: the options of [destination] as headers, as boto3's arguments, and as permissions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

_META = "x-amz-meta-"
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
    "content-md5": "ContentMD5",
    "if-none-match": "IfNoneMatch",
}
Headers = tuple[tuple[str, str], ...]


class ObjectOptions(NamedTuple):
    """How objects are stored: the rest of [destination]."""

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

    @property
    def headers(self) -> Headers:
        """What each PUT of an object carries, without a Content-Type that is chosen by name."""
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
            ("x-amz-expected-bucket-owner", self.expected_bucket_owner),
            ("x-amz-tagging", urlencode(self.tags, quote_via=quote)),
            *((f"{_META}{name.lower()}", value) for name, value in self.metadata.items()),
        ]
        return tuple((name, value) for name, value in headers if value)

    @property
    def grants(self) -> list[str]:
        """The permissions that an upload with these options takes."""
        more = {"s3:PutObjectTagging": self.tags, "s3:PutObjectAcl": self.acl}
        return ["s3:PutObject", *(name for name, needed in more.items() if needed)]


def arguments_of(headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Headers of an object or a part as boto3 takes them."""
    arguments: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower.startswith(_META):
            metadata[lower.removeprefix(_META)] = value
        else:
            arguments[_ARGUMENTS[lower]] = value
    return arguments | ({"Metadata": metadata} if metadata else {})


def mtime_text(mtime_ns: int) -> str:
    """Seconds with all nine decimals, the form rclone and others read back."""
    seconds, rest = divmod(abs(mtime_ns), 10**9)
    return f"{'-' if mtime_ns < 0 else ''}{seconds}.{rest:09d}"
