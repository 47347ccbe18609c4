"""What the tests put into the daemon's Python: on SIGUSR1 it hurts itself in the way that a file says.

Not part of the tests' process: it is copied beside the installed libraries, with a .pth file that imports it.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3spool import heartbeat

if TYPE_CHECKING:
    from types import FrameType

ORDERS = "/run/sabotage"
heartbeat.BEAT_S = 0.2  # threads that wait beat well within a second


def _obey(_number: int, frame: FrameType | None) -> None:
    """In the main thread, on top of the supervisor, whose frame knows the daemon."""
    while frame is not None and type(frame.f_locals.get("self")).__name__ != "Daemon":
        frame = frame.f_back
    assert frame is not None
    daemon: Any = frame.f_locals["self"]
    daemon.liveness.timeout_s = daemon.components.workers.hang_timeout_s = 1.5  # a minute is long for a test
    what, how = Path(ORDERS).read_text(encoding="utf-8").split()
    if how == "dies":
        _die({"watch": daemon.watch_manager.watch._inotify.name, "workers": "upload-"}.get(what, what))
        daemon.components.retry.wake()
        daemon.components.scan.want("sabotage")
    elif what == "gate":
        daemon.components.workers._gate.acquire()
    elif what == "sending":
        type(daemon.components.store.transport()).start = lambda _: threading.Event().wait()
    else:
        component = daemon.watch_manager if what == "watch" else getattr(daemon.components, what)
        component.heartbeat.beat = threading.Event().wait  # its thread hangs at the next beat


def _die(name: str) -> None:
    """Threads of this name end as soon as they run again."""
    kill, why = ctypes.pythonapi.PyThreadState_SetAsyncExc, ctypes.py_object(SystemExit)
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            kill(ctypes.c_ulong(thread.ident or 0), why)


signal.signal(signal.SIGUSR1, _obey)
