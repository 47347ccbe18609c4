"""Multiplexes small requests in one thread: libcurl's multi interface over epoll."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque

import pycurl

from s3spool.s3.curl_transport import CurlTransport

LONGEST_WAIT_S = 5.0  # the caller has to refresh its heartbeat
PROGRESS_CHECK_S = 1.0  # libcurl forgets its own checks of LOW_SPEED_TIME while a socket is silent
_WANTED = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}


class MultiClient:
    """Sends prepared requests. One thread at a time may call `poll`; any thread may call `wake`.

    It does not use pycurl's `select`, because select(2) cannot watch descriptors above 1023.
    """

    def __init__(self) -> None:
        self._in_flight: dict[pycurl.Curl, CurlTransport] = {}
        self._due: float | None = None  # monotonic seconds: libcurl's timer
        self._next_progress_check = 0.0  # monotonic seconds
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._multi = self._new_multi()

    def poll(self, pending: deque[CurlTransport], done: deque[CurlTransport], *, wait: bool) -> None:
        """Send all of `pending`, advance every request, and append the completed and failed ones to `done`.

        With `wait`, block until there is something to do, up to five seconds. An exception loses no request.
        """
        while pending:
            transport = pending[0]
            if transport.curl not in self._in_flight and not self._send(transport):
                done.append(transport)
            pending.popleft()
        if self._due is not None and self._due <= time.monotonic():
            self._due = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
            self._collect(done)
        for descriptor, events in self._epoll.poll(self._wait_s() if wait and not done else 0):
            if descriptor == self._wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wakeup)
                continue
            # libcurl detects EPOLLERR and EPOLLHUP.
            readable = pycurl.CSELECT_IN if events & ~select.EPOLLOUT else 0
            self._multi.socket_action(descriptor, readable | (pycurl.CSELECT_OUT if events & select.EPOLLOUT else 0))
        self._collect(done)
        # Last, so that a response that arrived while this thread was busy counts as progress.
        self._end_silent_requests(done)

    def wake(self) -> None:
        """Make a blocking `poll` return to its `pending` queue."""
        os.eventfd_write(self._wakeup, 1)

    def reset(self) -> None:
        self._cancel_all()
        self._multi = self._new_multi()

    def close(self) -> None:
        if not self._epoll.closed:
            self._cancel_all()
            self._epoll.close()
            os.close(self._wakeup)

    def _new_multi(self) -> pycurl.CurlMulti:
        multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        return multi

    def _cancel_all(self) -> None:
        for curl in self._in_flight:
            self._multi.remove_handle(curl)
        self._in_flight.clear()
        self._multi.close()
        self._due = None

    def _send(self, transport: CurlTransport) -> bool:
        if not transport.start():
            return False
        self._multi.add_handle(transport.curl)
        self._in_flight[transport.curl] = transport
        return True

    def _end_silent_requests(self, done: deque[CurlTransport]) -> None:
        now = time.monotonic()
        if self._next_progress_check > now:
            return
        self._next_progress_check = now + PROGRESS_CHECK_S
        for curl, transport in list(self._in_flight.items()):
            if transport.is_silent(now):
                self._multi.remove_handle(curl)
                del self._in_flight[curl]
                done.append(transport)

    def _collect(self, done: deque[CurlTransport]) -> None:
        left = 1
        while left:
            left, arrived, failed = self._multi.info_read()
            for curl, number, message in failed:
                self._in_flight[curl].failed(number, message)
                arrived.append(curl)
            for curl in arrived:
                self._multi.remove_handle(curl)
                done.append(self._in_flight.pop(curl))

    def _wait_s(self) -> float:
        now = time.monotonic()
        due = now + LONGEST_WAIT_S if self._due is None else self._due
        if self._in_flight:
            due = min(due, self._next_progress_check)
        return min(LONGEST_WAIT_S, max(0.0, due - now))

    def _on_timer(self, wait_ms: int) -> None:
        """Libcurl's timer callback; -1 stops the timer."""
        self._due = None if wait_ms < 0 else time.monotonic() + wait_ms / 1000

    def _on_socket(self, what: int, descriptor: int, _multi: object, known: object) -> None:
        """Libcurl's socket callback: which events to wait for."""
        if what == pycurl.POLL_REMOVE:
            try:  # noqa: SIM105 - for each request: contextlib.suppress takes a microsecond
                self._epoll.unregister(descriptor)
            except FileNotFoundError:
                pass
        elif known is None:
            self._epoll.register(descriptor, _WANTED[what])
            self._multi.assign(descriptor, self)
        else:
            self._epoll.modify(descriptor, _WANTED[what])
