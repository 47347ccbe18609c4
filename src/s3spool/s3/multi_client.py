"""Many small requests under way at once, driven by one thread: libcurl's multi interface, over epoll."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque

import pycurl

from s3spool.s3.curl_transport import CurlTransport

LONGEST_WAIT_S = 5.0  # so often it shows that it lives, whatever libcurl's own clocks say
LOOK_S = 1.0  # so often it looks for requests that make no progress
_WANTED = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}


class MultiClient:
    """Sends what others have prepared. One thread at a time may call `turn`; `wake` is for any.

    Not pycurl's own `select`: that is select(2), which cannot look at descriptors above 1023.
    """

    def __init__(self) -> None:
        self._carried: dict[pycurl.Curl, CurlTransport] = {}
        self._due: float | None = None  # monotonic seconds: when libcurl wants to look at its clocks
        self._next_look = 0.0  # monotonic seconds
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._multi = self._new_multi()

    def poll(self, pending: deque[CurlTransport], over: deque[CurlTransport], *, wait: bool) -> None:
        """Take all of `boarding` along, and all a step further; what has its answer, or none to expect, goes to `over`.

        `wait`: until there is something to do. Nothing is lost where this is interrupted between two requests.
        """
        while pending:
            transport = pending[0]
            if transport.curl not in self._carried and not self._take(transport):
                over.append(transport)
            pending.popleft()
        if self._due is not None and self._due <= time.monotonic():
            self._due = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
            self._put_down(over)
        for descriptor, events in self._epoll.poll(self._wait_s() if wait and not over else 0):
            if descriptor == self._bell:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
                continue
            # An error or a hang-up alone (EPOLLERR, EPOLLHUP) libcurl finds by itself.
            readable = pycurl.CSELECT_IN if events & ~select.EPOLLOUT else 0
            self._multi.socket_action(descriptor, readable | (pycurl.CSELECT_OUT if events & select.EPOLLOUT else 0))
        self._put_down(over)
        # Last: an answer that has come while something else kept us is no silence.
        self._break_off_overdue(over)

    def wake(self) -> None:
        """Whoever waits in `turn` is to look at `boarding`."""
        os.eventfd_write(self._bell, 1)

    def reset(self) -> None:
        self._break_off()
        self._multi = self._new_multi()

    def close(self) -> None:
        if not self._epoll.closed:
            self._break_off()
            self._epoll.close()
            os.close(self._bell)

    def _new_multi(self) -> pycurl.CurlMulti:
        multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        return multi

    def _break_off(self) -> None:
        for curl in self._carried:
            self._multi.remove_handle(curl)
        self._carried.clear()
        self._multi.close()
        self._due = None

    def _take(self, transport: CurlTransport) -> bool:
        if not transport.set_out():
            return False
        self._multi.add_handle(transport.curl)
        self._carried[transport.curl] = transport
        return True

    def _break_off_overdue(self, over: deque[CurlTransport]) -> None:
        now = time.monotonic()
        if self._next_look > now:
            return
        self._next_look = now + LOOK_S
        for curl, transport in list(self._carried.items()):
            if transport.overdue(now):
                self._multi.remove_handle(curl)
                del self._carried[curl]
                over.append(transport)

    def _put_down(self, over: deque[CurlTransport]) -> None:
        left = 1
        while left:
            left, arrived, failed = self._multi.info_read()
            for curl, number, message in (*((curl, 0, "") for curl in arrived), *failed):
                transport = self._carried[curl]
                if number:
                    transport.failed(number, message)
                over.append(transport)
                self._multi.remove_handle(curl)
                del self._carried[curl]

    def _wait_s(self) -> float:
        now = time.monotonic()
        due = now + LONGEST_WAIT_S if self._due is None else self._due
        if self._carried:
            due = min(due, self._next_look)
        return min(LONGEST_WAIT_S, max(0.0, due - now))

    def _on_timer(self, wait_ms: int) -> None:
        """Libcurl's callback: -1 stands for no clock at all."""
        self._due = None if wait_ms < 0 else time.monotonic() + wait_ms / 1000

    def _on_socket(self, what: int, descriptor: int, _multi: object, known: object) -> None:
        """Libcurl's callback: what to wait for at this socket from now on."""
        if what == pycurl.POLL_REMOVE:
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(descriptor)
        elif known is None:
            self._epoll.register(descriptor, _WANTED[what])
            self._multi.assign(descriptor, self)
        else:
            self._epoll.modify(descriptor, _WANTED[what])
