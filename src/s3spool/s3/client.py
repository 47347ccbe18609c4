"""boto3's session and client for everything but bodies, and where the bodies go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
import botocore.config
import botocore.exceptions
import botocore.session
from botocore import UNSIGNED

from s3spool.errors import ConfigError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DEFAULT_REGION = "us-east-1"
_PROBE_KEY = "s3spool-key"


class Endpoint(NamedTuple):
    """Where objects go: `url` is scheme://host[:port][/bucket]/, to which the quoted key is appended."""

    url: str
    region: str


class Connection(NamedTuple):
    """What it takes to reach one bucket."""

    bucket: str
    endpoint_url: str
    region: str
    profile: str
    addressing_style: str
    ca_bundle: Path | None
    timeout_s: float


def session(connection: Connection) -> boto3.Session:
    """Raises ConfigError when destination.profile does not exist."""
    try:
        return boto3.Session(profile_name=connection.profile or None, region_name=connection.region or None)
    except botocore.exceptions.ProfileNotFound as exc:
        raise ConfigError("destination.profile", connection.profile, f"{exc}; see ~/.aws/config") from exc


def client(boto: boto3.Session, connection: Connection, region: str, *, connections: int = 10) -> S3Client:
    """An S3 client; thread-safe. boto3 retries a little by itself, for calls that carry no body."""
    return boto.client("s3", config=_config(connection, connections=connections), **_arguments(connection, region))


def endpoint(boto: boto3.Session, connection: Connection, region: str) -> Endpoint:
    """Let botocore's own rules (addressing style, dual stack, access points) say where an object goes."""
    try:
        unsigned = boto.client(
            "s3", config=_config(connection, signature_version=UNSIGNED), **_arguments(connection, region)
        )
        url = unsigned.generate_presigned_url(
            "put_object", Params={"Bucket": connection.bucket, "Key": _PROBE_KEY}, ExpiresIn=60
        )
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise ConfigError("destination.endpoint_url", connection.endpoint_url or None, str(exc)) from exc
    return Endpoint(url.partition(_PROBE_KEY)[0], region)


def region_of(boto: boto3.Session, connection: Connection) -> str:
    """The configured region, else the chain's, else the default; S3 corrects us with x-amz-bucket-region."""
    return connection.region or boto.region_name or DEFAULT_REGION


def _arguments(connection: Connection, region: str) -> dict[str, Any]:
    return {
        "region_name": region,
        "endpoint_url": connection.endpoint_url or None,
        "verify": str(connection.ca_bundle) if connection.ca_bundle else None,
    }


def _config(connection: Connection, *, connections: int = 1, **more: Any) -> Any:
    style: Any = connection.addressing_style
    if style == "auto":
        # Stores at an address of their own rarely have DNS for bucket names; AWS wants them.
        style = "path" if connection.endpoint_url else "auto"
    return botocore.config.Config(
        connect_timeout=connection.timeout_s,
        read_timeout=connection.timeout_s,
        max_pool_connections=connections,
        retries={"total_max_attempts": 2, "mode": "standard"},
        s3={"addressing_style": style},
        # We send checksums of our own as plain headers: aws-chunked trailers are more than several stores take.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="s3spool",
        **more,
    )
