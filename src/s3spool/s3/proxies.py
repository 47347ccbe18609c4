"""The proxy of a URL, from HTTPS_PROXY, HTTP_PROXY and NO_PROXY: one rule for libcurl and boto3.

Left to themselves they differ: libcurl ignores HTTP_PROXY in capitals, boto3 ignores networks in NO_PROXY.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from s3spool.errors import ConfigError

_PORTS = {"http": 80, "https": 443}  # of a proxy that names none; libcurl's own default is 1080


def proxy_of(url: str, environ: Mapping[str, str] = os.environ) -> str:
    """`http://user:password@host:port`, or "" for a direct connection. Raises ConfigError.

    A variable in small letters wins over the one in capitals, as everywhere.
    """
    target = urlsplit(url)
    variable, value = _variable(f"{target.scheme}_proxy", environ)
    if not value or _is_direct(target, _variable("no_proxy", environ)[1]):
        return ""
    try:
        proxy = urlsplit(value if "://" in value else f"http://{value}")
        port = proxy.port or _PORTS[proxy.scheme]
        if (
            proxy.scheme not in _PORTS
            or not proxy.hostname
            or "/" in proxy.path.rstrip("/")
            or proxy.query
            or proxy.fragment
        ):
            raise ValueError
    except (ValueError, KeyError):
        problem = "must be a proxy like http://user:password@proxy.example.org:3128, http or https"
        raise ConfigError(variable, masked(value), problem) from None
    host = f"[{proxy.hostname}]" if ":" in proxy.hostname else proxy.hostname
    user, at, _ = proxy.netloc.rpartition("@")
    return f"{proxy.scheme}://{user}{at}{host}:{port}"


def masked(proxy: str) -> str:
    """The URL of a proxy without user and password."""
    return re.sub(r"^(\w+://)?.*@", r"\1***@", proxy)


def _variable(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    name = name if name in environ else name.upper()
    return name, environ.get(name, "").strip()


def _is_direct(target: SplitResult, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host: itself, a domain above it, a network (CIDR) that holds it, or `*`."""
    host = (target.hostname or "").rstrip(".")
    port = target.port or _PORTS[target.scheme]
    return any(_names(entry.lower(), host, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _names(entry: str, host: str, port: int) -> bool:
    found = re.fullmatch(r"\[?([^\]]*?)\]?(?::(\d+))?", entry) if entry.count(":") < 2 or "]" in entry else None  # noqa: PLR2004 - an IPv6 address
    name, wanted_port = (found[1], found[2]) if found else (entry, None)
    if wanted_port and int(wanted_port) != port:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        domain = name.removeprefix("*").strip(".")
        return name == "*" or (bool(domain) and (host == domain or host.endswith(f".{domain}")))
