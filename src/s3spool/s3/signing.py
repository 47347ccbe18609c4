"""Signatures that libcurl cannot make; botocore makes them: SigV4A, and SigV4 for access keys with odd characters."""

from __future__ import annotations

import re
from typing import Any

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.crt.auth import CrtS3SigV4AsymAuth

from s3spool.s3.credentials import Snapshot
from s3spool.s3.options import Headers

_ENCODED = re.compile(r"[^A-Za-z0-9._~-]")
_UNSIGNED = Config(s3={"payload_signing_enabled": False})  # TLS and the checksum protect the body
_ALL_REGIONS = "*"


class _PayloadGiven(S3SigV4Auth):
    """SigV4 of a request whose body is elsewhere."""

    def payload(self, request: AWSRequest) -> str:
        return str(request.context["payload"])


def libcurl_signs(keys: Snapshot, url: str) -> bool:
    """Whether libcurl can sign: it cuts an access key at a colon (Swift's), encodes other characters, has no SigV4A."""
    return not _ENCODED.search(keys.access_key) and not _spans_regions(url)


def signed(url: str, headers: Headers, payload: str, keys: Snapshot, region: str) -> dict[str, str]:
    """The headers of a PUT with its signature; `payload` is its SHA-256, or UNSIGNED-PAYLOAD."""
    request = AWSRequest("PUT", url, headers=dict(headers))
    context: dict[str, Any] = request.context
    context |= {"payload": payload, "client_config": _UNSIGNED}
    credentials = Credentials(keys.access_key, keys.secret_key, keys.token or None)
    if _spans_regions(url):
        CrtS3SigV4AsymAuth(credentials, "s3", _ALL_REGIONS).add_auth(request)
    else:
        _PayloadGiven(credentials, "s3", region).add_auth(request)
    return dict(request.headers.items())


def _spans_regions(url: str) -> bool:
    """Whether this is a multi-region access point."""
    return ".mrap.accesspoint." in url
