"""A certificate that signs itself, and its key, for servers of one process that have to know each other.

Neither Python's standard library nor our dependencies make one, and the program `openssl` is not everywhere.
"""

from __future__ import annotations

import base64
import secrets
from hashlib import sha256
from typing import NamedTuple

# The curve P-256 (FIPS 186-4, D.1.2.3): y^2 = x^3 - 3x + b modulo _P, and a generator of _ORDER points.
_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_GENERATOR = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
# Tags of DER (X.690) and object identifiers, encoded.
_INTEGER, _BITS, _OCTETS, _UTF8, _TIME, _SEQUENCE, _SET = 0x02, 0x03, 0x04, 0x0C, 0x18, 0x30, 0x31
_CURVE = bytes.fromhex("06082a8648ce3d030107")  # prime256v1
_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")  # id-ecPublicKey
_SIGNATURE = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
_COMMON_NAME = bytes.fromhex("0603550403")
_IS_CA = bytes.fromhex("a3133011300f0603551d130101ff040530030101ff")  # basicConstraints, critical

_Point = tuple[int, int] | None  # None: the point at infinity


class Certificate(NamedTuple):
    """Both in PEM."""

    certificate: bytes
    key: bytes


def self_signed(name: str) -> Certificate:
    """A new key pair, and a certificate for it that does not end."""
    private = secrets.randbelow(_ORDER - 1) + 1
    point = b"\0\4" + _coordinates(_times(private, _GENERATOR))
    common_name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _COMMON_NAME, _der(_UTF8, name.encode()))))
    body = _der(
        _SEQUENCE,
        bytes.fromhex("a003020102"),  # version 3
        _number(secrets.randbits(64)),
        _SIGNATURE,
        common_name,
        _der(_SEQUENCE, _der(_TIME, b"20200101000000Z"), _der(_TIME, b"99991231235959Z")),
        common_name,
        _der(_SEQUENCE, _der(_SEQUENCE, _PUBLIC_KEY, _CURVE), _der(_BITS, point)),
        _IS_CA,
    )
    certificate = _der(_SEQUENCE, body, _SIGNATURE, _der(_BITS, b"\0" + _signed(body, private)))
    key = _der(
        _SEQUENCE, _number(1), _der(_OCTETS, private.to_bytes(32)), _der(0xA0, _CURVE), _der(0xA1, _der(_BITS, point))
    )
    return Certificate(_pem("CERTIFICATE", certificate), _pem("EC PRIVATE KEY", key))


def _signed(message: bytes, private: int) -> bytes:
    """ECDSA (FIPS 186-4, 6.4)."""
    once = secrets.randbelow(_ORDER - 1) + 1
    point = _times(once, _GENERATOR)
    assert point  # noqa: S101 - for mypy: no multiple below the order is infinity
    r = point[0] % _ORDER
    s = pow(once, -1, _ORDER) * (int.from_bytes(sha256(message).digest()) + r * private) % _ORDER
    return _der(_SEQUENCE, _number(r), _number(s))


def _times(factor: int, point: _Point) -> _Point:
    result: _Point = None
    while factor:
        if factor & 1:
            result = _plus(result, point)
        point = _plus(point, point)
        factor >>= 1
    return result


def _plus(one: _Point, other: _Point) -> _Point:
    if one is None or other is None:
        return one or other
    (x1, y1), (x2, y2) = one, other
    if x1 == x2 and (y1 + y2) % _P == 0:
        return None
    slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, _P) if one == other else (y2 - y1) * pow(x2 - x1, -1, _P)
    x = (slope * slope - x1 - x2) % _P
    return x, (slope * (x1 - x) - y1) % _P


def _coordinates(point: _Point) -> bytes:
    assert point  # noqa: S101 - for mypy
    return b"".join(each.to_bytes(32) for each in point)


def _number(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1))  # one bit more, for the sign


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8 or 1)
    return bytes([tag]) + (length if size < 0x80 else bytes([0x80 | len(length)]) + length) + content  # noqa: PLR2004 - X.690, 8.1.3


def _pem(label: str, content: bytes) -> bytes:
    lines = base64.encodebytes(content)
    return f"-----BEGIN {label}-----\n".encode() + lines + f"-----END {label}-----\n".encode()
