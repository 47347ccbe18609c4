"""Endpoints without TLS: what a signature has to cover there, and what a person has to know."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from s3spool.s3.proxies import proxy_of

DANGER = (
    "http beyond this machine: whoever is on the way can read files and forge answers, upon which"
    ' after.action = "delete" or "archive" removes files here that are not in the bucket; use https'
)


def beyond_loopback(url: str) -> bool:
    """Whether requests to this URL cross a network unencrypted; a proxy may be anywhere."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme == "http" and proxy_of(url):
        return True
    if parts.scheme != "http" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
