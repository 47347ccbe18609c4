"""The bound for any client here: unsigned PUTs over bare sockets, one event loop, no care for the content.

No tool to use, but proof that the sink holds 100 connections and answers at its ceiling.
"""

from __future__ import annotations

import selectors
import socket
import sys
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit


def main(endpoint_url: str, bucket: str, prefix: str, directory: str, in_flight: int) -> None:
    url = urlsplit(endpoint_url)
    waiting = list(Path(directory).iterdir())
    selector = selectors.DefaultSelector()

    def send_next(connection: socket.socket) -> None:
        if not waiting:
            selector.unregister(connection)
            connection.close()
            return
        path = waiting.pop()
        body = path.read_bytes()
        target = f"/{bucket}/{prefix}{path.name}"
        head = f"PUT {target} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    for _ in range(min(in_flight, len(waiting))):
        fresh = socket.create_connection((url.hostname, url.port))
        fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(fresh, selectors.EVENT_READ, bytearray())
        send_next(fresh)
    while selector.get_map():
        for key, _ in selector.select():
            connection, answer = cast("socket.socket", key.fileobj), key.data
            answer += connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(bytes(answer))
            if answer.endswith(b"\r\n\r\n"):
                answer.clear()
                send_next(connection)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
