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

from s3spool.errors import ConfigError
from s3spool.s3 import plain_http
from s3spool.s3.boto3_http import guarded
from s3spool.s3.boto3_transport import hooked
from s3spool.s3.credentials import Credentials
from s3spool.s3.errors import FAILURES, from_boto3, untrusted_success
from s3spool.s3.proxies import proxy_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DEFAULT_REGION = "us-east-1"
_PROBE_KEY = "s3spool-key"
_SYSTEM_CA = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_HASHED_CA = (
    "/etc/ssl/certs",
    "/etc/pki/ca-trust/extracted/pem/directory-hash",
)  # the same, one file each
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+\Z")
_MOST_WORKERS = 1000
_GRANT_GET = "grant s3:GetObject as well: this store confirms uploads only when asked with HEAD"


class Endpoint(NamedTuple):
    """An object's URL is `url`, scheme://host[:port][/bucket]/, and its quoted key."""

    url: str
    region: str


class Connection(NamedTuple):
    """The settings of [destination] that say how to reach one bucket."""

    bucket: str
    endpoint_url: str
    region: str
    profile: str
    addressing_style: str
    ca_bundle: Path | None
    timeout_s: float
    requester_pays: bool = False
    use_accelerate_endpoint: bool = False
    use_dualstack_endpoint: bool = False
    use_fips_endpoint: bool = False


class Found(NamedTuple):
    """An object as HEAD shows it: size in bytes; `checksums` by algorithm in base64, "" if there is none."""

    size: int
    etag: str
    checksums: Mapping[str, str]
    version_id: str


def session(connection: Connection) -> boto3.Session:
    """Return a session of boto3. Raises ConfigError if destination.profile does not exist."""
    try:
        return boto3.Session(profile_name=connection.profile or None, region_name=connection.region or None)
    except botocore.exceptions.ProfileNotFound as exc:
        raise ConfigError("destination.profile", connection.profile, f"{exc}; see ~/.aws/config") from exc


def client(boto: boto3.Session, connection: Connection, where: Endpoint) -> S3Client:
    """Return a client for all but bodies; thread-safe. It retries once by itself."""
    made: S3Client = boto.client(
        "s3", config=_config(connection, **_proxies(where)), **_arguments(boto, connection, where.region)
    )
    if connection.requester_pays:
        made.meta.events.register("before-call.s3", _pay)
    return guarded(made, str(ca_bundle(boto, connection)))


def body_client(boto: boto3.Session, connection: Connection, where: Endpoint) -> S3Client:
    """Return a client for bodies: one attempt, one pass over the file, a connection for each worker."""
    more: dict[str, dict[str, Any]] = {
        **_proxies(where),
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "s3": {"payload_signing_enabled": False},
    }
    made: S3Client = boto.client("s3", config=_config(connection, **more), **_arguments(boto, connection, where.region))
    if plain_http.beyond_loopback(made.meta.endpoint_url):  # the URL may come from AWS_ENDPOINT_URL
        more["s3"]["payload_signing_enabled"] = True
        made = boto.client("s3", config=_config(connection, **more), **_arguments(boto, connection, where.region))
    return hooked(guarded(made, str(ca_bundle(boto, connection))))


def _pay(params: dict[str, Any], **_: Any) -> None:
    """Add the header without which a bucket whose requesters pay refuses every request."""
    params["headers"]["x-amz-request-payer"] = "requester"


class _UrlFound(Exception):  # noqa: N818 - a message, not an error
    """Carries the URL of a request out of botocore."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url


def _raise_url(request: Any, **_: Any) -> None:
    raise _UrlFound(request.url)


class Clients:
    """Keeps one client of each kind for the current region and credentials. Thread-safe."""

    def __init__(self, boto: boto3.Session, connection: Connection, credentials: Credentials) -> None:
        """Raises ConfigError."""
        self._boto = boto
        self._connection = connection
        self._credentials = credentials
        self.endpoint = endpoint(boto, connection, region_of(boto, connection))
        self._lock = threading.Lock()  # boto3's sessions are not thread-safe
        self._made: dict[Callable[..., S3Client], tuple[tuple[str, int], S3Client]] = {}

    def plain(self) -> S3Client:
        return self._of(client)

    def bodies(self) -> S3Client:
        return self._of(body_client)

    def move_to(self, region: str) -> bool:
        """Take the bucket's region from an answer of S3, never an address; return True if it is new."""
        with self._lock:
            known = region == self.endpoint.region
            if not known:
                self.endpoint = endpoint(self._boto, self._connection, region)
            return not known

    def _of(self, make: Callable[..., S3Client]) -> S3Client:
        # A client keeps the credentials that it was made with.
        where = self.endpoint
        wanted = where.region, self._credentials.generation
        made = self._made.get(make)
        if made is None or made[0] != wanted:
            with self._lock:
                made = self._made.get(make)
                if made is None or made[0] != wanted:
                    made = self._made[make] = wanted, make(self._boto, self._connection, where)
        return made[1]


def endpoint(boto: boto3.Session, connection: Connection, region: str) -> Endpoint:
    """Return the endpoint by botocore's rules: addressing style, dual stack, access points. Raises ConfigError."""
    try:
        # A session of its own, freed with the client: a session keeps the whole description of S3, some 10 MiB.
        unsigned = session(connection).client(
            "s3", config=_config(connection, signature_version=UNSIGNED), **_arguments(boto, connection, region)
        )
        # Botocore makes presigned URLs for the global host, which redirects requests for young buckets elsewhere.
        unsigned.meta.events.register("before-send.s3.PutObject", _raise_url)
        unsigned.put_object(Bucket=connection.bucket, Key=_PROBE_KEY, Body=b"")
    except _UrlFound as found:
        proxy_of(found.url)  # raises ConfigError before anything is sent
        return Endpoint(found.url.removesuffix(_PROBE_KEY), region)
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise ConfigError("destination.endpoint_url", connection.endpoint_url or None, str(exc)) from exc
    raise AssertionError("botocore sent a request without the event before-send")


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


def region_of(boto: boto3.Session, connection: Connection) -> str:
    """Return the configured region, else that of boto3's chain, else the default; S3's answers correct it."""
    return connection.region or boto.region_name or DEFAULT_REGION


def ca_bundle(boto: boto3.Session, connection: Connection) -> Path:
    """Return destination.ca_bundle, else that of AWS's tools (AWS_CA_BUNDLE), else the system's bundle.

    libcurl and boto3 both use it: by default libcurl's wheel uses no system path, and boto3 only certifi's.
    """
    shared = boto._session.get_config_variable("ca_bundle")  # noqa: SLF001 - no public way
    found = (path for path in _SYSTEM_CA if os.path.exists(path))
    return connection.ca_bundle or Path(shared or next(found, certifi.where()))


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


def _arguments(boto: boto3.Session, connection: Connection, region: str) -> dict[str, Any]:
    return {
        "region_name": region,
        "endpoint_url": connection.endpoint_url or None,
        "verify": str(ca_bundle(boto, connection)),
    }


def _proxies(where: Endpoint) -> dict[str, Any]:
    """Return an empty mapping for none: it keeps botocore from asking the environment by a rule of its own."""
    proxy = proxy_of(where.url)
    return {"proxies": {"http": proxy, "https": proxy} if proxy else {}}


def _style(connection: Connection) -> Any:
    if connection.addressing_style == "auto" and connection.endpoint_url:
        # Stores other than AWS rarely have DNS names for buckets.
        return "path"
    return connection.addressing_style


def _config(connection: Connection, **more: Any) -> Any:
    options: dict[str, Any] = {
        "connect_timeout": connection.timeout_s,
        "read_timeout": connection.timeout_s,
        # Every worker may send a HEAD at once; urllib3 warns about each connection beyond the pool's size.
        "max_pool_connections": _MOST_WORKERS,
        "retries": {"total_max_attempts": 2, "mode": "standard"},
        # None: as the environment or the profile says.
        "use_dualstack_endpoint": connection.use_dualstack_endpoint or None,
        "use_fips_endpoint": connection.use_fips_endpoint or None,
        # Checksums are plain headers here: several stores refuse aws-chunked trailers.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "user_agent_extra": "s3spool",
    }
    s3 = {"addressing_style": _style(connection)} | more.pop("s3", {})
    if connection.use_accelerate_endpoint:
        s3["use_accelerate_endpoint"] = True
    return botocore.config.Config(**options | more, s3=s3)
