"""One bucket: makes requests of files, and verifies the answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from s3spool.config.schema import DestinationConfig
from s3spool.errors import UploadError
from s3spool.s3 import checksums
from s3spool.s3 import client as s3_client
from s3spool.s3.client import Clients, Endpoint, Found
from s3spool.s3.content import Content, NeedsVerificationError, Stored
from s3spool.s3.credentials import Credentials
from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.errors import conflict, from_answer, is_about_checksum, mismatch, untrusted
from s3spool.s3.keys import key_of
from s3spool.s3.multi_client import MultiClient
from s3spool.s3.object_rules import ObjectRules
from s3spool.s3.overwrite import OverwriteGuard
from s3spool.s3.transport import Answer, Bandwidth, Request

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+\Z")
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "HTTP301"}
_BAD_KEYS = {"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"}
_BAD_KEYS |= {"NoCredentials", "SignatureDoesNotMatch", "AccessDenied"}  # the chain may have other keys by now
MIB = 1024 * 1024
look = s3_client.look
log = structlog.get_logger()


class Store:
    """Thread-safe. Only `existing`, and `verify` with `may_verify`, send requests."""

    def __init__(
        self,
        destination: DestinationConfig,
        *,
        timeout_s: float,
        rules: ObjectRules | None = None,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        """Raises ConfigError. Asks the credential chain for at most five seconds; sends nothing to S3."""
        self.destination = destination
        self._timeout_s = timeout_s
        self._bandwidth = bandwidth
        self.bucket = destination.bucket
        self._session = s3_client.session(destination)
        self.credentials = Credentials(self._session)
        self._clients = Clients(self._session, destination, timeout_s, self.credentials)
        self.rules = rules or ObjectRules([destination])
        self.auto = destination.checksum == "auto"
        self.algorithm = "crc64nvme" if self.auto else destination.checksum
        self.never = destination.overwrite == "never"
        self.guard = OverwriteGuard(never=self.never, url=self._clients.endpoint.url)
        self._ca = s3_client.ca_source(s3_client.ca_bundle(self._session, destination))

    def apply(self, rules: ObjectRules) -> None:
        """Other options, for requests that are made from now on."""
        self.rules = rules

    @property
    def client(self) -> S3Client:
        """The client of boto3 for all but bodies; it changes with region and credentials, so do not keep it."""
        return self._clients.plain()

    @property
    def endpoint(self) -> Endpoint:
        return self._clients.endpoint

    def start(self) -> None:
        self.credentials.start()

    def close_idle(self) -> None:
        """Close idle connections of boto3; the workers close those of libcurl."""
        self._clients.close_idle()

    def close(self) -> None:
        self.credentials.close()

    def transport(self) -> CurlTransport:
        """Return a new transport; it belongs to one thread at a time."""
        return CurlTransport(
            lambda: self._clients.endpoint,
            self.credentials,
            ca=self._ca,
            timeout_s=self._timeout_s,
            bandwidth=self._bandwidth,
        )

    def multiplexer(self) -> MultiClient:
        """Return a new client for small requests."""
        return MultiClient()

    def attributes(self, path: str) -> frozenset[str]:
        """Return what the object's metadata takes from the open file: see folder/attributes.py."""
        return self.rules.of(path).metadata.attributes if self.rules.wants_attributes else frozenset()

    def key(self, path: str, mtime_s: float) -> str:
        """Return the key of a path. Raises UploadError (permanent) if the key would be too long."""
        return key_of(path, self.rules.of(path).prefix.of(mtime_s))

    def digest(self, content: Content, algorithm: str = "") -> str:
        """Return `algorithm:base64` of the content; read the file if it is not in memory. Raises OSError."""
        algorithm = algorithm or self.algorithm
        if content.body is not None:
            value = checksums.of_bytes(algorithm, content.body)
        else:
            value = checksums.of_range(algorithm, content.fd, 0, content.size)
        return f"{algorithm}:{value}"

    def request(self, content: Content) -> Request:
        """Return the request for a whole file. Raises UploadError (permanent) for a bad key, OSError."""
        prepared = self.rules.of(content.path)
        key = key_of(content.path, prepared.prefix.of(content.mtime_s))
        checksum = self.digest(content)
        algorithm, _, value = checksum.partition(":")
        headers = [
            *prepared.headers(content),
            (checksums.header_of(algorithm), value),
        ]
        if self.never:
            headers.append(("If-None-Match", "*"))
        return Request(key, "", tuple(headers), content.body, content.fd, 0, content.size, checksum, content.path)

    @property
    def asks_first(self) -> bool:
        """Whether `existing` must be called before a request: the server may ignore If-None-Match."""
        return self.never and self.guard.asks_first

    def existing(self, content: Content, request: Request) -> Stored | None:
        """Return the object at this key if it has our content, None if there is none; block.

        Raises UploadError, permanent if the object has another content; OSError.
        """
        found = look(self.client, self.bucket, request.key, request.path)
        if found is None:
            return None
        if not self._is_ours(content, request, found):
            raise conflict(request.path, request.key)
        return Stored(request.key, found.etag, request.checksum, found.version_id)

    def verify(self, content: Content, request: Request, answer: Answer, *, may_verify: bool) -> Stored:
        """Return the proof that S3 has exactly what was read. Raises UploadError, OSError.

        Raises NeedsVerificationError if only another request or read can tell and `may_verify` is False.
        """
        stored = self._verified(content, request, answer, may_verify=may_verify)
        if self.never and request.body is not None and self.guard.wants_trial:
            if not may_verify:
                raise NeedsVerificationError
            self._try_condition(request)
        return stored

    def _verified(self, content: Content, request: Request, answer: Answer, *, may_verify: bool) -> Stored:
        if answer.status == 412 and self.never:  # noqa: PLR2004 - Precondition Failed
            if not may_verify:
                raise NeedsVerificationError
            self.guard.refused()
            # An object with our content means that an earlier answer was lost. No object: the request is sent again.
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
        if etag == self._md5_hex(content, request):
            self._prefer_md5()
            return stored
        if not may_verify:
            raise NeedsVerificationError
        missing = untrusted(request, "a HEAD does not find the object")
        other = untrusted(request, f"neither checksum nor ETag ({etag or 'none'}) is that of the file")
        return self._found(content, request, missing, other)

    def accepted(self, request: Request, answer: Answer) -> Mapping[str, str]:
        """Return the headers of a success. Raises UploadError for any other answer."""
        if answer.error is not None:
            raise self.refused(answer.error)
        if answer.status != 200:  # noqa: PLR2004 - S3 knows no other success for a PUT
            raise self._refusal(request, answer)
        return answer.headers

    def refused(self, error: UploadError) -> UploadError:
        """Return the error; refresh the credentials soon if they may be its cause."""
        if error.code in _BAD_KEYS:
            self.credentials.refresh_soon()
        return error

    def _try_condition(self, request: Request) -> None:
        """Repeat a confirmed request, to learn whether the server refuses to replace the object."""
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
        """Compare the object's size and checksum by HEAD. Raises `missing` or `other`, OSError."""
        found = look(self.client, self.bucket, request.key, request.path)
        if found is None:
            raise missing
        if not self._is_ours(content, request, found):
            raise other
        return Stored(request.key, found.etag, request.checksum, found.version_id)

    def _is_ours(self, content: Content, request: Request, found: Found) -> bool:
        """Return whether an object has the size, and the checksum or MD5, of what was read."""
        algorithm, _, value = request.checksum.partition(":")
        if found.size != content.size:
            return False
        if algorithm != "md5" and found.checksums.get(algorithm) == value:
            return True
        return found.etag == self._md5_hex(content, request)

    def _md5_hex(self, content: Content, request: Request) -> str:
        md5 = request.checksum if request.checksum.startswith("md5:") else self.digest(content, "md5")
        return checksums.md5_hex(md5.partition(":")[2])

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
        """Return whether an answer names the bucket's `region`: the next requests go there, `error` is retried."""
        told = _REGION.match(region) and not self.destination.endpoint_url
        # Requests sent before another worker learnt the region are retried as well.
        if not told or not (self._clients.move_to(region) or error.code in _OTHER_REGION):
            return False
        error.retry_immediately = True
        return True

    def takes_md5_instead(self, algorithm: str, error: UploadError) -> bool:
        """Return whether the store refused this checksum and checksum = "auto": then MD5 is used from now on."""
        if not self.auto or algorithm == "md5" or not is_about_checksum(error):
            return False
        self._prefer_md5()
        return True

    def _prefer_md5(self) -> None:
        """Use MD5, which an ETag shows, at a store that does not repeat our checksum."""
        if self.auto and self.algorithm != "md5":
            log.debug("library.warning", logger="s3", message=f"the store does not confirm {self.algorithm}; using md5")
            self.algorithm = "md5"
