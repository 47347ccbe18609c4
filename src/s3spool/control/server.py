"""The control socket of a running daemon: one request per connection; no user can delay another one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from s3spool.control.peer import Peer
from s3spool.control.protocol import DeniedError, json_line
from s3spool.errors import S3SpoolError

TIMEOUT_S = 30.0  # from accept to the end of the answer
MAX_REQUEST_BYTES = 256 * 1024
USER_CONNECTIONS = 32
CONNECTIONS = 128
_THREADS = 2  # for each user and command
_BACKLOG = 128
_STEPS_TO_BEGIN = 5  # of the event loop, from accept to `_connected`

Handler = Callable[[Mapping[str, Any], Peer], Any]


class ControlServer:
    """Calls a handler on a thread of its own for each request. One event loop does all the reading and sending.

    The socket belongs to the daemon's user and group, mode 0660. The handlers check the permissions of the peer.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        """Raises OSError. It replaces the socket of a dead daemon: this process holds the directory lock."""
        self.path = path
        self._handlers = handlers
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)  # mode 0660 from the first moment
        try:
            self._socket.bind(str(path))
            self._socket.listen(_BACKLOG)
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.umask(before)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        # Only the loop touches these.
        self._connections: dict[asyncio.Task[Any], int] = {}  # each with its uid, the oldest first
        self._slots: weakref.WeakValueDictionary[tuple[int, str], asyncio.Semaphore] = weakref.WeakValueDictionary()

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        if self._started.is_set():
            with contextlib.suppress(RuntimeError):  # closed before
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(_report)
        server = await asyncio.start_unix_server(
            self._connected, sock=self._socket, limit=MAX_REQUEST_BYTES, backlog=_BACKLOG
        )
        self._started.set()
        await self._stop.wait()
        server.close()
        for _ in range(_STEPS_TO_BEGIN):  # an accepted connection closes its socket only once its task has begun
            await asyncio.sleep(0)
        # asyncio.run cancels the connections.

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine of start_unix_server
        # OSError: the peer is gone; TimeoutError: it does not send or read; CancelledError: it has to make room.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                peer = Peer.of(writer.get_extra_info("socket"))
                self._make_room(peer.uid)
                self._connections[task] = peer.uid
                async with asyncio.timeout(TIMEOUT_S):
                    line = await _request(reader)
                    writer.transport.set_write_buffer_limits(0)  # drain() waits until all of it is sent
                    writer.write(await self._answer(line, peer))
                    await writer.drain()
                    writer.close()
            finally:
                self._connections.pop(task, None)
                if not writer.is_closing():
                    writer.transport.abort()

    def _make_room(self, uid: int) -> None:
        """Close the oldest connection of a user who has too many: it is idle, slow, or waits for its turn."""
        users = Counter(self._connections.values())
        if users[uid] < USER_CONNECTIONS:
            if len(self._connections) < CONNECTIONS:
                return
            uid = users.most_common(1)[0][0]
        oldest = next(task for task, owner in self._connections.items() if owner == uid)
        del self._connections[oldest]
        oldest.cancel()

    async def _answer(self, line: bytes, peer: Peer) -> bytes:
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            command = request.pop("command")
            handler = self._handlers[command]
        except (msgspec.DecodeError, RecursionError, KeyError, TypeError) as exc:
            return json_line({"error": f"not a request this daemon knows: {exc}"})
        # Each command has its own threads: a request that hangs on a dead mount must not use up those of `status`.
        slot = self._slots.setdefault((peer.uid, command), asyncio.Semaphore(_THREADS))
        await slot.acquire()
        answered: asyncio.Future[bytes] = self._loop.create_future()

        def finish(answer: bytes) -> None:
            slot.release()
            if not answered.done():
                answered.set_result(answer)

        def work() -> None:
            answer = _answered(handler, request, peer)
            with contextlib.suppress(RuntimeError):  # the server was closed meanwhile
                self._loop.call_soon_threadsafe(finish, answer)

        try:
            threading.Thread(target=work, name=f"control-{command}", daemon=True).start()
        except RuntimeError as exc:  # the system has no thread left
            finish(json_line({"error": str(exc)}))
        return await answered


async def _request(reader: asyncio.StreamReader) -> bytes:
    """The first line; empty where it is longer than a request may be."""
    try:
        return await reader.readline()
    except ValueError:
        return b""


def _answered(handler: Handler, request: Mapping[str, Any], peer: Peer) -> bytes:
    try:
        return json_line({"answer": handler(request, peer)})
    except S3SpoolError as exc:
        return json_line({"error": str(exc), "denied": isinstance(exc, DeniedError)})
    except Exception as exc:  # noqa: BLE001 - the client gets the error, whatever it is
        _log_exception(str(exc))
        return json_line({"error": f"{type(exc).__name__}: {exc}"})


def _report(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Log an error of asyncio. OSError: no descriptor for a new connection; asyncio tries again in a second."""
    exc = context.get("exception")
    if not isinstance(exc, OSError):
        _log_exception(context["message"], exc)


def _log_exception(message: str, exc: BaseException | None = None) -> None:
    import structlog  # noqa: PLC0415 - start-up time

    structlog.get_logger().error(
        "library.warning", logger="control", message=message, exc_info=exc if exc is not None else True
    )
