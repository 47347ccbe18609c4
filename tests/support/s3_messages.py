"""What travels between a client and the S3 stand-in: requests, answers, framing, digests."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase, BytesIO
from xml.sax.saxutils import escape

from awscrt import checksums

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(kw_only=True)
class Request:
    """One request as it came; header names are lower-case, `key` and `query` are decoded."""

    method: str
    path: str  #: as sent, still percent-encoded
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    at_s: float  #: time.monotonic()
    connection: int  #: the client's port
    body: bytes = field(default=b"", repr=False)  #: without transfer framing
    received_bytes: int = 0  #: of the body, on the wire, framing included
    complete: bool = False  #: the whole body came

    @property
    def line(self) -> str:
        """Method, key and the query's names, for patterns: "PUT a.txt?partNumber&uploadId"."""
        names = "&".join(self.query)
        return f"{self.method} {self.key}" + (f"?{names}" if names else "")


@dataclass(kw_only=True)
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def error(cls, status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None) -> Answer:
        body = xml("Error", [("Code", code), ("Message", message or code), ("RequestId", "FAULTY")])
        return cls(status=status, headers={"Content-Type": "application/xml", **(headers or {})}, body=body)

    @classmethod
    def document(cls, root: str, children: Iterable[tuple[str, object]]) -> Answer:
        return cls(headers={"Content-Type": "application/xml"}, body=xml(root, children))


def xml(root: str, children: Iterable[tuple[str, object]]) -> bytes:
    """A document; a child's value may be a list of such pairs."""
    namespace = "" if root == "Error" else f' xmlns="{NAMESPACE}"'  # as S3 has it
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}{namespace}>{_nodes(children)}</{root}>'.encode()


def _nodes(children: Iterable[tuple[str, object]]) -> str:
    return "".join(
        f"<{name}>{_nodes(value) if isinstance(value, list) else escape(str(value))}</{name}>"
        for name, value in children
    )


def _crc64nvme(body: bytes) -> bytes:
    return int(checksums.crc64nvme(body)).to_bytes(8, "big")


def _crc32(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "big")


def _sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


DIGESTS: dict[str, Callable[[bytes], bytes]] = {"crc64nvme": _crc64nvme, "crc32": _crc32, "sha256": _sha256}


def checksum(algorithm: str, body: bytes) -> str:
    """The value of the header x-amz-checksum-ALGORITHM."""
    return base64.b64encode(DIGESTS[algorithm](body)).decode()


def md5_hex(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def md5_base64(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def read_chunked(stream: BufferedIOBase) -> tuple[bytes, dict[str, str], int]:
    """The body, the trailers and the bytes read: HTTP's chunked coding and S3's aws-chunked alike."""
    body, trailers, read_bytes = bytearray(), dict[str, str](), 0

    def line() -> bytes:
        nonlocal read_bytes
        raw = stream.readline()
        read_bytes += len(raw)
        return raw.strip()

    while size := int(line().split(b";")[0] or b"0", 16):
        body += stream.read(size)
        read_bytes += size
        line()
    while trailer := line():
        name, _, value = trailer.decode().partition(":")
        trailers[name.strip().lower()] = value.strip()
    return bytes(body), trailers, read_bytes


def unwrap_aws_chunked(request: Request) -> None:
    """Take S3's own framing off the body; its trailers become headers."""
    if "x-amz-decoded-content-length" in request.headers:
        request.body, trailers, _ = read_chunked(BytesIO(request.body))
        request.headers |= trailers
