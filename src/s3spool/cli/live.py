"""`s3spool top`: asks the daemon each second, draws, and ends with `q`."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from s3spool.control.protocol import NoDaemonError
from s3spool.errors import S3SpoolError

if TYPE_CHECKING:
    from s3spool.control.client import ControlClient

POLL_S = 1.0
_QUIT = {b"q", b"Q", b"\x03", b"\x04"}


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
    console, history = Console(highlight=False), History()
    answer, trouble = client.top(), ""
    history.add(answer)
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(answer, history, trouble, console.width, console.height), refresh=True)
            ready, _, _ = select.select([sys.stdin], [], [], POLL_S)
            if ready and os.read(sys.stdin.fileno(), 1) in _QUIT | {b""}:
                return
            try:
                answer, trouble = client.top(), ""
                history.add(answer)
            except S3SpoolError as exc:
                trouble = "no daemon runs" if isinstance(exc, NoDaemonError) else str(exc)


@contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive one by one and unseen."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
