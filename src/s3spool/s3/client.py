"""The session and clients of boto3, and the URL that bodies are sent to."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
import botocore.config
import botocore.exceptions
import botocore.session
import certifi
from botocore import UNSIGNED

from s3spool.config.schema import DestinationConfig
from s3spool.errors import ConfigError
from s3spool.s3.boto3_http import guarded
from s3spool.s3.credentials import Credentials
from s3spool.s3.errors import FAILURES, from_boto3, untrusted_success
from s3spool.s3.proxies import proxy_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DEFAULT_REGION = "us-east-1"
_PROBE_KEY = "s3spool-key"
_SYSTEM_CA = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_HASHED_CA = ("/etc/ssl/certs", "/etc/pki/ca-trust/extracted/pem/directory-hash")  # the same, one file each
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+\Z")
_MOST_WORKERS = 1000
_GRANT_GET = "grant s3:GetObject as well: this store confirms uploads only when asked with HEAD"


class Endpoint(NamedTuple):
    """An object's URL is `url`, scheme://host[:port][/bucket]/, and its quoted key."""

    url: str
    region: str


class Found(NamedTuple):
    """An object as HEAD shows it: size in bytes; `checksums` by algorithm in base64, "" if there is none."""

    size: int
    etag: str
    checksums: Mapping[str, str]
    version_id: str


def session(destination: DestinationConfig) -> boto3.Session:
    """Return a session of boto3. Raises ConfigError if destination.profile does not exist."""
    try:
        return boto3.Session(profile_name=destination.profile or None, region_name=destination.region or None)
    except botocore.exceptions.ProfileNotFound as exc:
        raise ConfigError("destination.profile", destination.profile, f"{exc}; see ~/.aws/config") from exc


class _UrlFound(Exception):  # noqa: N818 - a message, not an error
    """Carries the URL of a request out of botocore."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url


def _raise_url(request: Any, **_: Any) -> None:
    raise _UrlFound(request.url)


def _pay(params: dict[str, Any], **_: Any) -> None:
    """Add the header without which a bucket whose requesters pay refuses every request."""
    params["headers"]["x-amz-request-payer"] = "requester"


class Clients:
    """Keeps a client for the current region and credentials. Thread-safe."""

    def __init__(
        self, boto: boto3.Session, destination: DestinationConfig, timeout_s: float, credentials: Credentials
    ) -> None:
        """Raises ConfigError."""
        self._boto = boto
        self._destination = destination
        self._timeout_s = timeout_s
        self._credentials = credentials
        # S3's answers correct the region.
        self.endpoint = self._endpoint(destination.region or boto.region_name or DEFAULT_REGION)
        self._lock = threading.Lock()  # boto3's sessions are not thread-safe
        self._made: tuple[tuple[str, int], S3Client, Callable[[], None]] | None = None

    def plain(self) -> S3Client:
        """Return the client for all but bodies. It retries once by itself."""
        # A client keeps the credentials that it was made with.
        wanted = self.endpoint.region, self._credentials.generation
        made = self._made
        if made is None or made[0] != wanted:
            with self._lock:
                made = self._made
                if made is None or made[0] != wanted:
                    made = self._made = wanted, *self._make(self.endpoint)
        return made[1]

    def close_idle(self) -> None:
        """Close connections that no request uses; a request that begins in this moment is sent again by boto3."""
        if self._made is not None:
            self._made[2]()

    def move_to(self, region: str) -> bool:
        """Take the bucket's region from an answer of S3, never an address; return True if it is new."""
        with self._lock:
            known = region == self.endpoint.region
            if not known:
                self.endpoint = self._endpoint(region)
            return not known

    def _make(self, where: Endpoint) -> tuple[S3Client, Callable[[], None]]:
        proxy = proxy_of(where.url)
        # An empty mapping for none keeps botocore from asking the environment by a rule of its own.
        proxies = {"http": proxy, "https": proxy} if proxy else {}
        made, close_idle = guarded(self._client(self._boto, where.region, proxies=proxies), self._ca)
        if self._destination.requester_pays:
            made.meta.events.register("before-call.s3", _pay)
        return made, close_idle

    def _endpoint(self, region: str) -> Endpoint:
        """Return the endpoint by botocore's rules: addressing style, dual stack, access points. Raises ConfigError."""
        destination = self._destination
        try:
            # A session of its own, freed with the client: a session keeps the whole description of S3, some 10 MiB.
            unsigned = self._client(session(destination), region, signature_version=UNSIGNED)
            # Botocore makes presigned URLs for the global host, which redirects requests for young buckets elsewhere.
            unsigned.meta.events.register("before-send.s3.PutObject", _raise_url)
            unsigned.put_object(Bucket=destination.bucket, Key=_PROBE_KEY, Body=b"")
        except _UrlFound as found:
            proxy_of(found.url)  # raises ConfigError before anything is sent
            return Endpoint(found.url.removesuffix(_PROBE_KEY), region)
        except (botocore.exceptions.BotoCoreError, ValueError) as exc:
            raise ConfigError("destination.endpoint_url", destination.endpoint_url or None, str(exc)) from exc
        raise AssertionError("botocore sent a request without the event before-send")

    @property
    def _ca(self) -> str:
        return str(ca_bundle(self._boto, self._destination))

    def _client(self, boto: boto3.Session, region: str, **config: Any) -> S3Client:
        destination, style = self._destination, self._destination.addressing_style
        options: dict[str, Any] = {
            "connect_timeout": self._timeout_s,
            "read_timeout": self._timeout_s,
            # Every worker may send a HEAD at once; urllib3 warns about each connection beyond the pool's size.
            "max_pool_connections": _MOST_WORKERS,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
            # None: as the environment or the profile says.
            "use_dualstack_endpoint": destination.use_dualstack_endpoint or None,
            "use_fips_endpoint": destination.use_fips_endpoint or None,
            # Checksums are plain headers here: several stores refuse aws-chunked trailers.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "user_agent_extra": "s3spool",
        }
        # Stores other than AWS rarely have DNS names for buckets.
        s3: Any = {"addressing_style": "path" if style == "auto" and destination.endpoint_url else style}
        if destination.use_accelerate_endpoint:
            s3["use_accelerate_endpoint"] = True
        return boto.client(
            "s3",
            region_name=region,
            endpoint_url=destination.endpoint_url or None,
            verify=self._ca,
            config=botocore.config.Config(**options | config, s3=s3),
        )


def look(client: S3Client, bucket: str, key: str, path: str) -> Found | None:
    """Return the object as HEAD shows it, None if there is none; block. Raises UploadError."""
    try:
        head = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except FAILURES as exc:
        error = from_boto3(exc, path, "confirm")
        if error.code in {"HTTP404", "NoSuchKey"}:
            return None
        if error.code in {"HTTP403", "AccessDenied"}:
            error.hint = _GRANT_GET
        raise error from exc
    found = {
        "crc64nvme": head.get("ChecksumCRC64NVME", ""),
        "crc32": head.get("ChecksumCRC32", ""),
        "sha256": head.get("ChecksumSHA256", ""),
    }
    if "ContentLength" not in head or not head.get("ETag"):
        raise untrusted_success("confirm", path, "without the object's size and ETag")
    return Found(head["ContentLength"], head["ETag"].strip('"'), found, head.get("VersionId", ""))


def ca_bundle(boto: boto3.Session, destination: DestinationConfig) -> Path:
    """Return destination.ca_bundle, else that of AWS's tools (AWS_CA_BUNDLE), else the system's bundle.

    libcurl and boto3 both use it: by default libcurl's wheel uses no system path, and boto3 only certifi's.
    """
    shared = boto._session.get_config_variable("ca_bundle")  # noqa: SLF001 - no public way
    found = (path for path in _SYSTEM_CA if os.path.exists(path))
    return destination.ca_bundle or Path(shared or next(found, certifi.where()))


def ca_source(bundle: Path) -> Path:
    """Return the system's directory of hashed certificates for libcurl, if it holds all of the bundle's.

    A connection reads a whole bundle (1 MiB of memory and 5 ms for 150 certificates), but one file of a directory.
    """
    if str(bundle) not in _SYSTEM_CA:
        return bundle
    try:
        wanted = bundle.read_bytes().count(b"-----BEGIN CERTIFICATE-----")
        for directory in filter(os.path.isdir, _HASHED_CA):
            if sum(_HASHED_NAME.match(name) is not None for name in os.listdir(directory)) >= wanted:
                return Path(directory)
    except OSError:
        return bundle  # libcurl's error names it
    return bundle
