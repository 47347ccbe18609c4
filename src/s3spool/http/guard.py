"""Which requests the HTTP server answers: Host against DNS rebinding, the token, and Origin against CSRF."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from s3spool.config.validators import is_loopback

ORDER_HEADER = "HTTP_X_S3SPOOL"  # another origin cannot send it without a preflight, which is never granted


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: str
    reason: str


class Guard:
    """Checks of one listening address. With an empty token every user of this machine is let in."""

    def __init__(self, host: str, token: str) -> None:
        self._token = token.encode()
        self._local = is_loopback(host)
        self._names = {host.lower(), "localhost"} | (set() if self._local else {socket.gethostname().lower()})

    def refuse(self, environ: Mapping[str, Any]) -> Refusal | None:
        """The reason to refuse this request; None to answer it."""
        host = environ.get("HTTP_HOST", "")
        if not self._is_ours(host):
            return Refusal("403 Forbidden", "the Host header names another host; use the address of http_listen")
        if self._token and not hmac.compare_digest(_given_token(environ), self._token):
            return Refusal("401 Unauthorized", "service.http_token is needed, as a bearer token or as a password")
        if environ["REQUEST_METHOD"] == "POST" and not _same_origin(environ, host):
            return Refusal("403 Forbidden", "orders are taken from the page itself, or with the header X-S3Spool: 1")
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether it is an address or a name that DNS cannot point here for a foreign page."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._local


def _given_token(environ: Mapping[str, Any]) -> bytes:
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer":
        return str(value).strip().encode(errors="replace")
    if scheme.lower() == "basic":  # what a browser asks a person for; any user name
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _same_origin(environ: Mapping[str, Any], host: str) -> bool:
    origin = environ.get("HTTP_ORIGIN")
    return (
        environ.get(ORDER_HEADER) == "1"
        and environ.get("HTTP_SEC_FETCH_SITE", "same-origin") == "same-origin"
        and (origin is None or urlsplit(origin).netloc.lower() == host.lower())
    )
