"""Recognises endpoints without TLS: there the signature covers the body, and a warning is shown."""

from __future__ import annotations

from urllib.parse import urlsplit

from s3spool.config.validators import is_loopback
from s3spool.s3.proxies import proxy_of

DANGER = (
    "http beyond this machine: anybody on the way can read files and forge answers, upon which"
    ' after.action = "delete" or "archive" removes files here that are not in the bucket; use https'
)


def beyond_loopback(url: str) -> bool:
    """Return whether requests to this URL leave this machine unencrypted; a proxy may be anywhere."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme != "http":
        return False
    return bool(proxy_of(url)) or not (host.endswith(".localhost") or is_loopback(host))
