"""Versions of all components for `s3spool version --verbose`."""

from __future__ import annotations

import platform
import sqlite3
import ssl
import sys
from collections.abc import Iterator
from importlib import metadata

from s3spool import __version__


def lines() -> Iterator[str]:
    """One component per line; a missing one has a line as well."""
    yield f"s3spool {__version__}"
    yield f"Python {platform.python_version()} ({sys.executable}; {ssl.OPENSSL_VERSION})"
    yield f"SQLite {sqlite3.sqlite_version}"
    yield f"boto3 {_distribution('boto3')} (botocore {_distribution('botocore')})"
    yield f"awscrt {_distribution('awscrt')}"
    yield from _pycurl()


def _pycurl() -> Iterator[str]:
    try:
        import pycurl  # noqa: PLC0415 - it may be missing
    except ImportError as exc:
        yield f"pycurl missing ({exc}): boto3 sends the files"
        return
    # libcurl's own record: (age, version, number, host, features, TLS library, ...)
    found = pycurl.version_info()
    yield f"pycurl {_distribution('pycurl')}"
    yield f"libcurl {found[1]} ({found[5]})"


def _distribution(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
