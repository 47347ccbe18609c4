"""The bucket as the pipeline sees it: makes requests of files, and judges what the answers prove."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

import botocore.exceptions
import structlog

from s3spool.errors import Scope, UploadError
from s3spool.content import Content, MustAskError, Stored
from s3spool.s3 import checksums
from s3spool.s3 import client as s3_client
from s3spool.s3.boto3_transport import Boto3Transport, translated
from s3spool.s3.client import Connection, Endpoint
from s3spool.s3.credentials import Credentials
from s3spool.s3.errors import from_answer, untrusted
from s3spool.s3.keys import Prefix, key_of
from s3spool.s3.transport import Answer, Request, Transport

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_MD5_ETAG = re.compile(r"[0-9a-f]{32}\Z")
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+\Z")
_CHECKSUM_REFUSED = {"InvalidRequest", "InvalidArgument", "NotImplemented", "BadRequest", "MalformedHeader"}
_STALE_KEYS = {"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"}
MIB = 1024 * 1024
log = structlog.get_logger()


class Found(NamedTuple):
    """What a HEAD says of an object. `checksums` by algorithm, base64, "" where the store has none."""

    size: int
    etag: str
    checksums: Mapping[str, str]
    version_id: str


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


class Store:
    """Thread-safe. Nothing here touches the network but `transport().send` and `judge` with `may_ask`."""

    def __init__(
        self, connection: Connection, options: ObjectOptions, *, pace: Callable[[int], None] | None = None
    ) -> None:
        """Raises ConfigError; asks the credential chain, but not S3."""
        self._connection = connection
        self._options = options
        self._pace = pace
        self.bucket = connection.bucket
        self._session = s3_client.session(connection)
        self._region = s3_client.region_of(self._session, connection)
        self.endpoint = s3_client.endpoint(self._session, connection, self._region)
        self.client = s3_client.client(self._session, connection, self._region)
        self.credentials = Credentials(self._session)
        self._prefix = Prefix(options.prefix)
        self._headers = tuple(_constant_headers(options))
        self.algorithm = "crc64nvme" if options.checksum == "auto" else options.checksum
        self.never = options.overwrite == "never"
        self._curl = _curl_transport()

    @property
    def name(self) -> str:
        """Receipts count for one destination only."""
        return f"{self._connection.endpoint_url or 'aws'}|{self.bucket}|{self._options.prefix}"

    @property
    def kind(self) -> str:
        """Which transport carries the bodies: curl or boto3."""
        return "boto3" if self._curl is None else "curl"

    def start(self) -> None:
        self.credentials.start()

    def close(self) -> None:
        self.credentials.close()

    def transport(self) -> Transport:
        """A new connection for the calling thread."""
        if self._curl is None:
            return Boto3Transport(self.client, self.bucket, self._pace)
        return self._curl(
            self._endpoint_now,
            self.credentials,
            ca_bundle=self._connection.ca_bundle,
            timeout_s=self._connection.timeout_s,
            pace=self._pace,
        )

    def key(self, path: str, mtime_s: float) -> str:
        """Raises UploadError (permanent) when the path makes no key."""
        return key_of(path, self._prefix.of(mtime_s))

    def digest(self, content: Content, algorithm: str = "") -> str:
        """`algorithm:base64` of the content; reads the file where it is not in memory. Raises OSError."""
        algorithm = algorithm or self.algorithm
        if content.body is not None:
            value = checksums.of_bytes(algorithm, content.body)
        else:
            value = checksums.of_range(algorithm, content.fd, 0, content.size)
        return f"{algorithm}:{value}"

    def request(self, content: Content) -> Request:
        """Raises UploadError (permanent) when the path makes no key, OSError when the file cannot be read."""
        key = self.key(content.path, content.mtime_s)
        checksum = self.digest(content)
        algorithm, _, value = checksum.partition(":")
        headers = [
            *self._headers,
            (checksums.header_of(algorithm), value),
            ("x-amz-meta-mtime", mtime_text(content.identity.mtime_ns)),
        ]
        if self.never:
            headers.append(("If-None-Match", "*"))
        return Request(key, "", tuple(headers), content.body, content.fd, 0, content.size, checksum, content.path)

    def judge(self, content: Content, request: Request, answer: Answer, *, may_ask: bool) -> Stored:
        """What the answer proves: that S3 has exactly what was read, or why not.

        Raises UploadError; MustAskError where only another request or another read could tell and `may_ask` is
        False.
        """
        if answer.status == 412 and self.never:  # noqa: PLR2004 - Precondition Failed
            if not may_ask:
                raise MustAskError
            # Somebody's object is there. If its content is ours, our own earlier answer was lost.
            return self._compare(content, request, "", conflict=True)
        headers = self.accepted(request, answer)
        algorithm, _, value = request.checksum.partition(":")
        etag = headers.get("etag", "").strip('"')
        stored = Stored(request.key, etag, request.checksum, headers.get("x-amz-version-id", ""))
        if algorithm != "md5":
            echoed = headers.get(checksums.header_of(algorithm))
            if echoed == value:
                return stored
            if echoed is not None:
                raise self.mismatch(request, f"its {algorithm} is {echoed}, ours {value}")
        if content.body is None and algorithm != "md5" and not may_ask:
            raise MustAskError
        md5 = checksums.md5_hex(value if algorithm == "md5" else self.digest(content, "md5").partition(":")[2])
        if etag == md5:
            self._prefer_md5()
            return stored
        if not may_ask:
            raise MustAskError
        return self._compare(content, request, etag or "none", conflict=False)

    def accepted(self, request: Request, answer: Answer) -> Mapping[str, str]:
        """The headers of a success; raises UploadError for anything else."""
        if answer.error is not None:
            raise self.refused(answer.error)
        if answer.status != 200:  # noqa: PLR2004 - S3 knows no other success for a PUT
            raise self._refusal(request, answer)
        return answer.headers

    def create_arguments(self, mtime: str) -> dict[str, Any]:
        """The object's options as boto3's create_multipart_upload takes them."""
        options = self._options
        arguments = {
            "StorageClass": options.storage_class,
            "ServerSideEncryption": options.sse,
            "SSEKMSKeyId": options.kms_key_id,
            "ACL": options.acl,
            "ExpectedBucketOwner": options.expected_bucket_owner,
            "Tagging": urlencode(options.tags, quote_via=quote),
            "Metadata": {**{name.lower(): value for name, value in options.metadata.items()}, "mtime": mtime},
        }
        return {name: value for name, value in arguments.items() if value}

    @property
    def owner_headers(self) -> tuple[tuple[str, str], ...]:
        """The one constant header that parts take as well."""
        return tuple(header for header in self._headers if header[0] == "x-amz-expected-bucket-owner")

    def refused(self, error: UploadError) -> UploadError:
        """The same error, after what it tells us about our credentials has been heard."""
        if error.code in _STALE_KEYS or error.code == "NoCredentials":
            self.credentials.refresh_soon()
        return error

    @staticmethod
    def unconfirmed(request: Request, why: str) -> UploadError:
        return untrusted(request, why)

    @staticmethod
    def mismatch(request: Request, why: str) -> UploadError:
        return UploadError("confirm", request.path, "BadDigest", f"S3 has other bytes than were read: {why}")

    @staticmethod
    def conflict(path: str, key: str) -> UploadError:
        return UploadError(
            "upload",
            path,
            "PreconditionFailed",
            f'another object is at {key} and destination.overwrite = "never"',
            permanent=True,
            hint="rename the file, or remove the object",
        )

    def _compare(self, content: Content, request: Request, etag: str, *, conflict: bool) -> Stored:
        """Ask with HEAD for size and checksum and compare them with what was read."""
        found = look(self.client, self.bucket, request.key, request.path)
        if found is None:
            raise untrusted(request, "a HEAD does not find the object")
        algorithm, _, value = request.checksum.partition(":")
        proven = algorithm != "md5" and found.checksums.get(algorithm) == value
        if not proven:
            proven = found.etag == checksums.md5_hex(self.digest(content, "md5").partition(":")[2])
        if found.size == content.size and proven:
            return Stored(request.key, found.etag, request.checksum, found.version_id)
        if conflict:
            raise self.conflict(request.path, request.key)
        raise untrusted(request, f"neither checksum nor ETag ({etag}) is that of the file")

    def _refusal(self, request: Request, answer: Answer) -> UploadError:
        error = from_answer(request, answer)
        region = answer.headers.get("x-amz-bucket-region", "")
        if region != self._region and _REGION.match(region) and not self._connection.endpoint_url:
            self._move_to(region)
            return UploadError("upload", request.path, error.code, error.cause, scope=Scope.FILE, sudden=False)
        checksum_refused = error.code in _CHECKSUM_REFUSED and "checksum" in error.cause.lower()
        if checksum_refused and self._options.checksum == "auto" and self.algorithm != "md5":
            self._prefer_md5()
            error.permanent = False
        return self.refused(error)

    def _prefer_md5(self) -> None:
        """The store does not repeat our checksum: send the one whose result its ETag shows."""
        if self._options.checksum == "auto" and self.algorithm != "md5":
            log.debug("transport.fallback", reason="the store does not repeat crc64nvme; using md5")
            self.algorithm = "md5"

    def _move_to(self, region: str) -> None:
        """S3 says in which region the bucket is. Only the name is believed, never an address."""
        self._region = region
        self.client = s3_client.client(self._session, self._connection, region)
        self.endpoint = s3_client.endpoint(self._session, self._connection, region)

    def _endpoint_now(self) -> Endpoint:
        return self.endpoint


def mtime_text(mtime_ns: int) -> str:
    """Seconds with all nine decimals, the form rclone and others read back."""
    return f"{mtime_ns // 10**9}.{mtime_ns % 10**9:09d}"


def look(client: S3Client, bucket: str, key: str, path: str) -> Found | None:
    """Ask for an object with HEAD; None when there is none. Blocks; raises UploadError."""
    try:
        head = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as exc:
        error = translated(exc, path, "confirm")
        if error.code in {"HTTP404", "NoSuchKey"}:
            return None
        raise error from exc
    found = {
        "crc64nvme": head.get("ChecksumCRC64NVME", ""),
        "crc32": head.get("ChecksumCRC32", ""),
        "sha256": head.get("ChecksumSHA256", ""),
    }
    return Found(head["ContentLength"], head["ETag"].strip('"'), found, head.get("VersionId", ""))


def _constant_headers(options: ObjectOptions) -> list[tuple[str, str]]:
    headers = [
        ("x-amz-storage-class", options.storage_class),
        ("x-amz-server-side-encryption", options.sse),
        ("x-amz-server-side-encryption-aws-kms-key-id", options.kms_key_id),
        ("x-amz-acl", options.acl),
        ("x-amz-expected-bucket-owner", options.expected_bucket_owner),
        ("x-amz-tagging", urlencode(options.tags, quote_via=quote)),
        *((f"x-amz-meta-{name.lower()}", value) for name, value in options.metadata.items()),
    ]
    return [(name, value) for name, value in headers if value]


def _curl_transport() -> Callable[..., Transport] | None:
    try:
        from s3spool.s3.curl_transport import CurlTransport  # noqa: PLC0415 - pycurl may be missing
    except ImportError as exc:
        log.warning("transport.fallback", reason=f"pycurl cannot be used ({exc}): boto3 sends the bodies, slower")
        return None
    return CurlTransport
