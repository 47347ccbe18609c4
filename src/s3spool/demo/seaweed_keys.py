"""Keys that close all ports of SeaweedFS but S3 to other users. Each start makes new ones."""

from __future__ import annotations

import os
import secrets
import ssl
from hashlib import sha256
from pathlib import Path

from awscrt.crypto import EC, ECExportFormat, ECType

# `weed scaffold -config=security` explains these settings; the variable WEED_X_Y sets the key x.y.
_HTTP_KEYS = ("JWT_SIGNING", "JWT_SIGNING_READ", "JWT_FILER_SIGNING", "JWT_FILER_SIGNING_READ")
_GRPC_SIDES = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "CLIENT")
# DER (X.690): tags, and parts of a certificate that never change.
_BIT_STRING, _UTF8_STRING, _TIME, _SEQUENCE, _SET = 0x03, 0x0C, 0x18, 0x30, 0x31
_VERSION_3_SERIAL_1 = bytes.fromhex("a003020102 020101")
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_COMMON_NAME = bytes.fromhex("0603550403")
_IS_CA = bytes.fromhex("a3133011300f0603551d130101ff040530030101ff")  # basicConstraints, critical


def security_environment(directory: Path) -> dict[str, str]:
    """Variables that make weed require its own keys on each port, and on gRPC its own certificate in `directory`."""
    certificate, key = directory / "grpc.crt", directory / "grpc.key"
    for path, text in zip((certificate, key), self_signed("s3spool demo"), strict=True):
        write_private(path, text)
    variables = {"WEED_GRPC_CA": str(certificate)}
    for side in _GRPC_SIDES:
        variables |= {f"WEED_GRPC_{side}_CERT": str(certificate), f"WEED_GRPC_{side}_KEY": str(key)}
    for name in _HTTP_KEYS:
        # Tokens never leave the process. weed's 10 s can expire before a stalled machine has written a chunk.
        variables |= {f"WEED_{name}_KEY": secrets.token_hex(32), f"WEED_{name}_EXPIRES_AFTER_SECONDS": "3600"}
    return variables


def write_private(path: Path, text: str) -> None:
    """Replace the file. No other user can read it, not even while it is written."""
    path.unlink(missing_ok=True)  # an existing file would keep its mode
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def self_signed(name: str) -> tuple[str, str]:
    """A CA certificate that does not expire, and its new private key, in PEM."""
    key = EC.new_generate(ECType.P_256)
    subject = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _COMMON_NAME, _der(_UTF8_STRING, name.encode()))))
    validity = _der(_SEQUENCE, _der(_TIME, b"20200101000000Z"), _der(_TIME, b"99991231235959Z"))
    public_key = key.export_key(ECExportFormat.SPKI)
    fields = (_VERSION_3_SERIAL_1, _ECDSA_WITH_SHA256, subject, validity, subject, public_key, _IS_CA)
    body = _der(_SEQUENCE, *fields)
    signature = _der(_BIT_STRING, b"\0", key.sign(sha256(body).digest()))
    certificate = ssl.DER_cert_to_PEM_cert(_der(_SEQUENCE, body, _ECDSA_WITH_SHA256, signature))
    private_key = ssl.DER_cert_to_PEM_cert(key.export_key(ECExportFormat.PKCS8))
    return certificate, private_key.replace("CERTIFICATE", "PRIVATE KEY")


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8)
    long_form = bytes([0x80 | len(length)]) if size >= 0x80 else b""  # noqa: PLR2004 - X.690, 8.1.3
    return bytes([tag]) + long_form + length + content
