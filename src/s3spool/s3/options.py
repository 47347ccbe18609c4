"""The options of [destination] as headers, as arguments of boto3, and as permissions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode


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

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers of each PUT of an object."""
        headers = [
            ("x-amz-storage-class", self.storage_class),
            ("x-amz-server-side-encryption", self.sse),
            ("x-amz-server-side-encryption-aws-kms-key-id", self.kms_key_id),
            ("x-amz-acl", self.acl),
            ("x-amz-expected-bucket-owner", self.expected_bucket_owner),
            ("x-amz-tagging", urlencode(self.tags, quote_via=quote)),
            *((f"x-amz-meta-{name.lower()}", value) for name, value in self.metadata.items()),
        ]
        return tuple((name, value) for name, value in headers if value)

    def create_arguments(self, mtime: str) -> dict[str, Any]:
        """Return the options as arguments of boto3's create_multipart_upload."""
        arguments = {
            "StorageClass": self.storage_class,
            "ServerSideEncryption": self.sse,
            "SSEKMSKeyId": self.kms_key_id,
            "ACL": self.acl,
            "ExpectedBucketOwner": self.expected_bucket_owner,
            "Tagging": urlencode(self.tags, quote_via=quote),
            "Metadata": {**{name.lower(): value for name, value in self.metadata.items()}, "mtime": mtime},
        }
        return {name: value for name, value in arguments.items() if value}

    @property
    def grants(self) -> list[str]:
        """The permissions that an upload with these options needs."""
        more = {"s3:PutObjectTagging": self.tags, "s3:PutObjectAcl": self.acl}
        return ["s3:PutObject", *(name for name, needed in more.items() if needed)]


def mtime_text(mtime_ns: int) -> str:
    """Return seconds with nine decimals, the form that rclone and others read."""
    seconds, rest = divmod(abs(mtime_ns), 10**9)
    return f"{'-' if mtime_ns < 0 else ''}{seconds}.{rest:09d}"
