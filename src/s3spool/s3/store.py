"""The bucket as the pipeline sees it: makes requests of files, and verifies the responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from s3spool.errors import UploadError
from s3spool.s3 import checksums
from s3spool.s3 import client as s3_client
from s3spool.s3.boto3_transport import Boto3Transport
from s3spool.s3.client import Clients, Connection, Endpoint, Found
from s3spool.s3.content import Content, Multiplexer, NeedsVerificationError, Sender, Stored
from s3spool.s3.credentials import Credentials, signs_with
from s3spool.s3.errors import conflict, from_answer, is_about_checksum, mismatch, untrusted
from s3spool.s3.keys import Prefix, key_of
from s3spool.s3.options import ObjectOptions, mtime_text
from s3spool.s3.overwrite import OverwriteGuard
from s3spool.s3.transport import Answer, Bandwidth, Request

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+\Z")
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "HTTP301"}
_BAD_KEYS = {"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"}
_BAD_KEYS |= {"NoCredentials", "SignatureDoesNotMatch", "AccessDenied"}  # other keys may be there by now
MIB = 1024 * 1024
look = s3_client.look
log = structlog.get_logger()


class Store:
    """Thread-safe. Only `transport().send`, `existing`, and `verify` with `may_verify` send requests."""

    def __init__(
        self,
        connection: Connection,
        options: ObjectOptions,
        *,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        """Raises ConfigError; asks the credential chain, but not S3."""
        self._connection = connection
        self.options = options
        self._bandwidth = bandwidth
        self.bucket = connection.bucket
        self._session = s3_client.session(connection)
        self.credentials = Credentials(self._session)
        self._clients = Clients(self._session, connection, self.credentials)
        self._prefix = Prefix(options.prefix)
        self._headers = options.headers
        self.auto = options.checksum == "auto"
        self.algorithm = "crc64nvme" if self.auto else options.checksum
        self.never = options.overwrite == "never"
        self.guard = OverwriteGuard(never=self.never, url=self._clients.endpoint.url)
        self.no_curl = self._why_no_curl()
        self._curl = None if self.no_curl else _curl_transport()
        self._ca = s3_client.ca_source(s3_client.ca_bundle(self._session, connection))

    @property
    def name(self) -> str:
        """Receipts count for one destination only."""
        return f"{self._connection.endpoint_url or 'aws'}|{self.bucket}|{self.options.prefix}"

    def _why_no_curl(self) -> str:
        """What libcurl cannot sign; "" where it can."""
        if self._connection.bucket.endswith(".mrap"):
            return "a multi-region access point takes another signature than libcurl makes"
        keys = self.credentials.current
        if keys and not signs_with(keys):
            return "libcurl cannot sign with an access key that holds other characters than A-Z a-z 0-9 . _ ~ -"
        return ""

    @property
    def kind(self) -> str:
        """Which transport carries the bodies: curl or boto3."""
        return "boto3" if self._curl is None else "curl"

    @property
    def client(self) -> S3Client:
        """For all but bodies; thread-safe. Ask for it each time: it changes with the region and the credentials."""
        return self._clients.plain()

    @property
    def endpoint(self) -> Endpoint:
        return self._clients.endpoint

    def start(self) -> None:
        self.credentials.start()

    def close(self) -> None:
        self.credentials.close()

    def transport(self) -> Sender:
        """A new connection for the calling thread."""
        if self._curl is None:
            return Boto3Transport(self._clients.bodies, self.bucket, self._bandwidth)
        return self._curl(
            lambda: self._clients.endpoint,
            self.credentials,
            ca=self._ca,
            timeout_s=self._connection.timeout_s,
            bandwidth=self._bandwidth,
        )

    def multiplexer(self) -> Multiplexer | None:
        """For small requests; None where libcurl is missing."""
        if self._curl is None:
            return None
        from s3spool.s3.multi_client import MultiClient  # noqa: PLC0415 - pycurl may be missing

        return MultiClient()

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

    @property
    def asks_first(self) -> bool:
        """Whether `existing` has to be asked before a request is sent: the server may ignore its condition."""
        return self.guard.asks_first

    def existing(self, content: Content, request: Request) -> Stored | None:
        """The object at this key if it has our content, None if there is none; blocks.

        Raises UploadError, permanent where the object has another content; OSError.
        """
        found = look(self.client, self.bucket, request.key, request.path)
        if found is None:
            return None
        if not self._is_ours(content, request, found):
            raise conflict(request.path, request.key)
        return Stored(request.key, found.etag, request.checksum, found.version_id)

    def verify(self, content: Content, request: Request, answer: Answer, *, may_verify: bool) -> Stored:
        """What the answer proves: that S3 has exactly what was read, or why not.

        Raises UploadError; MustAskError where only another request or another read could tell and `may_ask` is
        False.
        """
        stored = self._verified(content, request, answer, may_verify=may_verify)
        if request.body is not None and self.guard.wants_trial:
            if not may_verify:
                raise NeedsVerificationError
            self._try_condition(request)
        return stored

    def _verified(self, content: Content, request: Request, answer: Answer, *, may_verify: bool) -> Stored:
        if answer.status == 412 and self.never:  # noqa: PLR2004 - Precondition Failed
            if not may_verify:
                raise NeedsVerificationError
            self.guard.refused()
            # Somebody's object is there. If its content is ours, our own earlier answer was lost.
            # If it has gone meanwhile, the way is free.
            return self._found(content, request, from_answer(request, answer), conflict(request.path, request.key))
        headers = self.accepted(request, answer)
        algorithm, _, value = request.checksum.partition(":")
        etag = headers.get("etag", "").strip('"')
        stored = Stored(request.key, etag, request.checksum, headers.get("x-amz-version-id", ""))
        if algorithm != "md5":
            echoed = headers.get(checksums.header_of(algorithm))
            if echoed == value:
                return stored
            if echoed is not None:
                raise mismatch(request, f"its {algorithm} is {echoed}, ours {value}")
        if content.body is None and algorithm != "md5" and not may_verify:
            raise NeedsVerificationError
        md5 = checksums.md5_hex(value if algorithm == "md5" else self.digest(content, "md5").partition(":")[2])
        if etag == md5:
            self._prefer_md5()
            return stored
        if not may_verify:
            raise NeedsVerificationError
        missing = untrusted(request, "a HEAD does not find the object")
        other = untrusted(request, f"neither checksum nor ETag ({etag or 'none'}) is that of the file")
        return self._found(content, request, missing, other)

    def accepted(self, request: Request, answer: Answer) -> Mapping[str, str]:
        """The headers of a success; raises UploadError for anything else."""
        if answer.error is not None:
            raise self.refused(answer.error)
        if answer.status != 200:  # noqa: PLR2004 - S3 knows no other success for a PUT
            raise self._refusal(request, answer)
        return answer.headers

    @property
    def owner_headers(self) -> tuple[tuple[str, str], ...]:
        """The one constant header that parts take as well."""
        return tuple(header for header in self._headers if header[0] == "x-amz-expected-bucket-owner")

    def refused(self, error: UploadError) -> UploadError:
        """Return the error; refresh the credentials soon where it concerns them."""
        if error.code in _BAD_KEYS:
            self.credentials.refresh_soon()
        return error

    def _try_condition(self, request: Request) -> None:
        """Send once more what the server has just taken: does it refuse to replace it?"""
        if not self.guard.begin_trial():
            return
        status = 0
        sender = self.transport()
        try:
            sender.prepare(request)
            sender.send()
            status = sender.answer().status
        finally:
            sender.close()
            self.guard.end_trial(status)

    def _found(self, content: Content, request: Request, missing: UploadError, other: UploadError) -> Stored:
        """Ask with HEAD for size and checksum; raises `missing` or `other` where that is not what was read."""
        found = look(self.client, self.bucket, request.key, request.path)
        if found is None:
            raise missing
        if not self._is_ours(content, request, found):
            raise other
        return Stored(request.key, found.etag, request.checksum, found.version_id)

    def _is_ours(self, content: Content, request: Request, found: Found) -> bool:
        """Whether an object has the size, and the checksum or MD5, of what was read."""
        algorithm, _, value = request.checksum.partition(":")
        if found.size != content.size:
            return False
        if algorithm != "md5" and found.checksums.get(algorithm) == value:
            return True
        md5 = value if algorithm == "md5" else self.digest(content, "md5").partition(":")[2]
        return found.etag == checksums.md5_hex(md5)

    def _refusal(self, request: Request, answer: Answer) -> UploadError:
        error = from_answer(request, answer)
        if self.moves_to(answer.headers.get("x-amz-bucket-region", ""), error):
            return error
        algorithm = request.checksum.partition(":")[0]
        if self.takes_md5_instead(algorithm, error):
            error.retry_immediately = True
            return error
        return self.refused(error)

    def moves_to(self, region: str, error: UploadError) -> bool:
        """Whether an answer says that the bucket is in this region. The next request goes there; `error` is retried."""
        told = _REGION.match(region) and not self._connection.endpoint_url
        # Once one worker has moved, the others still get such answers: to what they had sent before.
        if not told or not (self._clients.move_to(region) or error.code in _OTHER_REGION):
            return False
        error.retry_immediately = True
        return True

    def takes_md5_instead(self, algorithm: str, error: UploadError) -> bool:
        """Whether the store refused because of this checksum, and the choice was left to us."""
        if not self.auto or algorithm == "md5" or not is_about_checksum(error):
            return False
        self._prefer_md5()
        return True

    def _prefer_md5(self) -> None:
        """The store does not repeat our checksum: send the one whose result its ETag shows."""
        if self.auto and self.algorithm != "md5":
            log.debug("transport.fallback", reason=f"the store does not confirm {self.algorithm}; using md5")
            self.algorithm = "md5"


def _curl_transport() -> Callable[..., Sender] | None:
    try:
        from s3spool.s3.curl_transport import CurlTransport  # noqa: PLC0415 - pycurl may be missing
    except ImportError as exc:
        log.warning("transport.fallback", reason=f"pycurl cannot be used ({exc}): boto3 sends the bodies, slower")
        return None
    return CurlTransport
