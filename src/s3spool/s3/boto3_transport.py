"""The same act through boto3: slower, for where pycurl is missing or SigV4 with one region is not enough."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import botocore.exceptions

from s3spool.errors import Scope, UploadError
from s3spool.s3.errors import from_code
from s3spool.s3.transport import Answer, Request

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ARGUMENTS = {
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
_META = "x-amz-meta-"


class _Range:
    """A range of an open file as the file object botocore reads, seeks and reads again."""

    def __init__(self, request: Request, pace: Callable[[int], None] | None) -> None:
        self._request = request
        self._pace = pace
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        rest = self._request.length - self._position
        wanted = rest if size < 0 else min(size, rest)
        if self._pace is not None and wanted:
            self._pace(wanted)
        data = os.pread(self._request.fd, wanted, self._request.offset + self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._request.length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def __len__(self) -> int:
        return self._request.length


class Boto3Transport:
    """Follows transport.Transport; the client may be shared, boto3's are thread-safe."""

    def __init__(self, client: S3Client, bucket: str, pace: Callable[[int], None] | None = None) -> None:
        self._client = client
        self._bucket = bucket
        self._pace = pace
        self._request: Request | None = None
        self._answer = Answer(0, {}, b"", None)

    def prepare(self, request: Request) -> None:
        self._request = request

    def send(self) -> None:
        request = self._request
        if request is None:
            return
        arguments = _arguments(request)
        body: Any = _Range(request, self._pace) if request.body is None else request.body
        try:
            if request.query:
                query = parse_qs(request.query)
                answer: Any = self._client.upload_part(
                    Bucket=self._bucket,
                    Key=request.key,
                    Body=body,
                    PartNumber=int(query["partNumber"][0]),
                    UploadId=query["uploadId"][0],
                    **arguments,
                )
            else:
                answer = self._client.put_object(Bucket=self._bucket, Key=request.key, Body=body, **arguments)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError) as exc:
            self._answer = Answer(0, {}, b"", translated(exc, request.path))
        else:
            self._answer = Answer(200, dict(answer["ResponseMetadata"]["HTTPHeaders"]), b"", None)

    def answer(self) -> Answer:
        return self._answer

    def close(self) -> None:
        self._request = None


def translated(exc: Exception, path: str, operation: str = "upload") -> UploadError:
    """botocore's exceptions in our terms; every call to boto3 goes through here."""
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
    if isinstance(exc, OSError):
        return UploadError(operation, path, type(exc).__name__, str(exc))
    sudden = isinstance(
        exc,
        botocore.exceptions.EndpointConnectionError
        | botocore.exceptions.SSLError
        | botocore.exceptions.ProxyConnectionError,
    )
    return UploadError(operation, path, type(exc).__name__, str(exc), scope=Scope.DESTINATION, sudden=sudden)


def _arguments(request: Request) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name, value in request.headers:
        lower = name.lower()
        if lower.startswith(_META):
            metadata[lower.removeprefix(_META)] = value
        else:
            arguments[_ARGUMENTS[lower]] = value
    if metadata:
        arguments["Metadata"] = metadata
    return arguments
