"""Keys without which SeaweedFS answers nothing but S3: for one run, and known to that one process."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from s3spool.demo.certificate import self_signed

# `weed scaffold -config=security` explains them; a variable WEED_X_Y stands for its key x.y.
_HTTP_KEYS = ("JWT_SIGNING", "JWT_SIGNING_READ", "JWT_FILER_SIGNING", "JWT_FILER_SIGNING_READ")
_GRPC_SIDES = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "CLIENT")


def closed(directory: Path) -> dict[str, str]:
    """The environment of a SeaweedFS whose master, volumes, filer and admin obey itself alone.

    gRPC takes mutual TLS with one certificate for all sides, written to `directory`.
    """
    made = self_signed("s3spool demo")
    certificate, key = directory / "grpc.crt", directory / "grpc.key"
    for path, content in ((certificate, made.certificate), (key, made.key)):
        path.unlink(missing_ok=True)  # or an old file would keep its mode
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    tls = {f"WEED_GRPC_{side}_CERT": str(certificate) for side in _GRPC_SIDES}
    tls |= {f"WEED_GRPC_{side}_KEY": str(key) for side in _GRPC_SIDES}
    tokens = {f"WEED_{name}_KEY": secrets.token_hex(32) for name in _HTTP_KEYS}
    # Nobody else sees a token, and on a machine that stalls the usual 10 s are over before a chunk is written.
    tokens |= {f"WEED_{name}_EXPIRES_AFTER_SECONDS": "3600" for name in _HTTP_KEYS}
    return {"WEED_GRPC_CA": str(certificate)} | tls | tokens
