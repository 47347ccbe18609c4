"""Telling systemd how the daemon is doing: sd_notify(3).

Where systemd-python is missing, the messages go to the socket directly: a Type=notify unit whose READY=1
never comes would be killed for being late.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from s3spool.logs.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MISSING = "systemd-python is not installed (the extra s3spool[systemd], Debian: python3-systemd)"


class Notifier:
    """Speaks to the service manager; silent where there is none (NOTIFY_SOCKET unset).

    No method raises: a daemon that cannot report goes on uploading.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self.missing = False  #: systemd asked to be notified, but systemd-python is not installed
        self.watchdog_interval_s = _watchdog_interval_s(environ)  #: how often to call `watchdog`, None: never
        self._status = ""
        self._send: Callable[[str], object]
        if not address:
            self._send = _nothing
            return
        try:
            from systemd.daemon import notify  # noqa: PLC0415 - an extra: most installations have no need of it
        except ImportError:
            self.missing = True
            self._send = _Datagrams(address)
        else:
            self._send = notify

    def ready(self) -> None:
        """Started, or done with reloading."""
        self._tell("READY=1")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows; sent only when it has changed."""
        if text != self._status:
            self._status = text
            # A newline would begin the next assignment: a file name must not be able to say MAINPID=1.
            self._tell(f"STATUS={printable(text)}")

    def reloading(self) -> None:
        """Reading the configuration again (Type=notify-reload); `ready` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def extend_timeout(self, s: float) -> None:
        """Ask for `s` more seconds to start or stop in, counted from now."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(s * 1_000_000)}")

    def watchdog(self) -> None:
        """Still alive; due every `watchdog_interval_s`."""
        self._tell("WATCHDOG=1")

    def _tell(self, message: str) -> None:
        with suppress(OSError):  # the manager is gone or its queue is full; the next message may get through
            self._send(message)


class _Datagrams:
    """sd_notify in five lines."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @: an abstract socket

    def __call__(self, message: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)


def _nothing(_message: str) -> None:
    pass


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for another process
    with suppress(ValueError):
        timeout_s = int(environ.get("WATCHDOG_USEC", "0")) / 1_000_000
        return timeout_s / 2 if timeout_s > 0 else None
    return None
