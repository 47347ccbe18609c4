"""A sink for large files and for latencies: drops bodies inside the kernel, answers at once.

Run `python -m benchmarks.blackhole PORT`, or start `Blackhole` in a thread and read its `answers`.
"""

from __future__ import annotations

import socketserver
import sys
import time
from collections import defaultdict
from email.parser import BytesHeaderParser
from http import HTTPStatus
from socket import MSG_TRUNC
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from email.message import Message
    from socket import socket

HEADER_END = b"\r\n\r\n"
CHECKSUM = "x-amz-checksum-crc64nvme"
ALGORITHM = "x-amz-checksum-algorithm"  # S3 repeats it when an upload is begun
NEVER_WRITTEN = bytearray(1 << 20)  # MSG_TRUNC leaves the buffer alone, so all threads may name the same one


class Blackhole(socketserver.ThreadingTCPServer):
    """One thread a connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Connection)
        self.sizes_bytes: defaultdict[str, int] = defaultdict(int)  # by path; the parts of one upload add up
        self.checksums: dict[str, str] = {}
        self.answers: list[tuple[str, float]] = []  # path of each PUT and time.monotonic() of its answer

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Connection(socketserver.BaseRequestHandler):
    """Speaks just enough of HTTP and S3."""

    request: socket

    def handle(self) -> None:
        self.hole = cast("Blackhole", self.server)
        received = b""
        while True:
            while HEADER_END not in received:
                more = self.request.recv(65536)
                if not more:
                    return
                received += more
            head, _, body = received.partition(HEADER_END)
            request_line, _, header_lines = head.partition(b"\r\n")
            method, target, _ = request_line.decode("latin-1").split(" ")
            headers = BytesHeaderParser().parsebytes(header_lines)
            length = int(headers.get("Content-Length", 0))
            if "100-continue" in headers.get("Expect", ""):
                self.request.sendall(b"HTTP/1.1 100 Continue" + HEADER_END)
            self._discard(length - len(body))
            received = body[length:]
            self._answer(method, target, headers, length)

    def _discard(self, count: int) -> None:
        while count > 0:
            taken = self.request.recv_into(NEVER_WRITTEN, min(count, len(NEVER_WRITTEN)), MSG_TRUNC)
            if not taken:
                raise ConnectionError("closed inside a body")
            count -= taken

    def _answer(self, method: str, target: str, headers: Message, length: int) -> None:
        path, _, query = target.partition("?")
        checksum = headers.get(CHECKSUM, "")
        status, xml = HTTPStatus.OK, ""
        if method == "PUT":
            self.hole.sizes_bytes[path] = length + (self.hole.sizes_bytes[path] if query else 0)
        if method == "POST" and "uploads" in query:
            self.hole.sizes_bytes[path] = 0
            xml = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        elif method == "POST":
            xml = (
                f'<CompleteMultipartUploadResult><ETag>"{0:032x}-1"</ETag>'
                f"{f'<ChecksumCRC64NVME>{checksum}</ChecksumCRC64NVME>' if checksum else ''}"
                "</CompleteMultipartUploadResult>"
            )
        elif method == "GET":
            xml = "<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
        elif method == "DELETE":
            status = HTTPStatus.NO_CONTENT
        if method in {"PUT", "POST"} and checksum:
            self.hole.checksums[path] = checksum
        if method == "HEAD":
            length, checksum = self.hole.sizes_bytes[path], self.hole.checksums.get(path, "")
        else:
            length = len(xml)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Length: {length}",
            f'ETag: "{0:032x}"',
            "x-amz-bucket-region: us-east-1",
            *([f"{CHECKSUM}: {checksum}", "x-amz-checksum-type: FULL_OBJECT"] if checksum else []),
            *([f"{ALGORITHM}: {headers[ALGORITHM]}"] if ALGORITHM in headers else []),
        ]
        self.request.sendall("\r\n".join(lines).encode() + HEADER_END + xml.encode())
        if method == "PUT":
            self.hole.answers.append((path, time.monotonic()))


if __name__ == "__main__":
    Blackhole(int(sys.argv[1])).serve_forever()
