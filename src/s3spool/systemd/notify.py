"""Notifications to systemd, as of sd_notify(3): small datagrams to the socket that NOTIFY_SOCKET names.

Not through systemd-python: its call blocks, with the GIL held, while the manager's queue is full.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from s3spool.logs.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

READY = "READY=1"


class Notifier:
    """Reports to the service manager; does nothing where NOTIFY_SOCKET is unset. No method raises or blocks."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @: an abstract socket
        self.watchdog_interval_s = _watchdog_interval_s(environ)  #: how often to call `watchdog`, None: never
        self._status = ""
        self._ready_is_due = False

    def ready(self) -> None:
        """Started, or reloaded."""
        self._ready_is_due = True
        self._send()

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows; sent only when it has changed."""
        if text != self._status:
            # A newline would begin the next assignment: a file name must not be able to say MAINPID=1.
            self._status = text if self._send(f"STATUS={printable(text)}") else ""

    def reloading(self) -> None:
        """The configuration is read again (Type=notify-reload); `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._ready_is_due = False
        self._send("STOPPING=1")

    def extend_timeout(self, s: float) -> None:
        """Ask for `s` more seconds to start or stop in, counted from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(s * 1_000_000)}")

    def watchdog(self) -> None:
        """The daemon is alive; due every `watchdog_interval_s`."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> bool:
        """Drop the message if the manager is gone or its queue is full; READY=1 goes with the next message instead."""
        message = "\n".join([READY, *assignments] if self._ready_is_due else assignments)
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError:
            return False
        self._ready_is_due = False
        return True


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for another process
    with suppress(ValueError):
        timeout_s = int(environ.get("WATCHDOG_USEC", "0")) / 1_000_000
        return timeout_s / 2 if timeout_s > 0 else None
    return None
