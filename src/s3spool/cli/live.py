"""`s3spool top`: asks the daemon each second on a thread of its own, draws, and ends with `q`."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from s3spool.control.protocol import NoDaemonError
from s3spool.errors import S3SpoolError

if TYPE_CHECKING:
    from s3spool.control.client import ControlClient

POLL_S = 1.0
_QUIT = {b"q", b"Q", b"\x03", b"\x04"}


class Poller:
    """Keeps the daemon's latest answer. The main thread reads; a byte in `wakeup` says that it is new."""

    def __init__(self, client: ControlClient, first: dict[str, Any]) -> None:
        self._client = client
        self.answer = first
        self.trouble = ""  #: why there is no newer one
        self._closing = threading.Event()
        self.wakeup, self._bell = os.pipe()
        self._thread = threading.Thread(target=self._run, name="top", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(POLL_S):
            try:
                self.answer, self.trouble = self._client.top(), ""
            except S3SpoolError as exc:
                self.trouble = "no daemon runs" if isinstance(exc, NoDaemonError) else str(exc)
            os.write(self._bell, b"x")


def run_top(client: ControlClient) -> None:
    """Blocks until `q`. Raises S3SpoolError."""
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.live import Live  # noqa: PLC0415 - the same

        from s3spool.cli.top import History, view  # noqa: PLC0415 - the same
    except ImportError as exc:
        raise S3SpoolError(f"s3spool top needs the extra top ({exc}): pip install 's3spool[top]'") from exc
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise S3SpoolError("s3spool top needs a terminal; `s3spool status` prints once")
    first = client.top()
    console, history, poller = Console(highlight=False), History(), Poller(client, first)
    history.add(first)
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        shown: Any = None
        while True:
            if poller.answer is not shown:
                shown = poller.answer
                history.add(shown)
            live.update(view(shown, history, poller.trouble, console.width, console.height), refresh=True)
            ready, _, _ = select.select([sys.stdin, poller.wakeup], [], [], 2 * POLL_S)
            if poller.wakeup in ready:
                os.read(poller.wakeup, 100)
            if sys.stdin in ready and os.read(sys.stdin.fileno(), 1) in _QUIT | {b""}:
                break
    poller.close()


@contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive one by one and unseen."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
