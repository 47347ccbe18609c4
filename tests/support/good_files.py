"""Files dropped beside trouble: how long each of them takes to arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from support.daemon import Daemon


class GoodFiles:
    """Drops one file each `every_s` while the context lasts, and waits for each."""

    def __init__(self, daemon: Daemon, arrived: Callable[[str], bool], *, every_s: float = 0.25) -> None:
        self._daemon = daemon
        self._arrived = arrived
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.durations_s: list[float] = []

    @property
    def slowest_s(self) -> float:
        return max(self.durations_s)

    def report(self, what: str) -> None:
        """For a person who runs the full sizes: shown by pytest -s."""
        count, slowest_s = len(self.durations_s), self.slowest_s
        print(f"{what}; {count} good files, the slowest took {slowest_s:.2f} s")  # noqa: T201 - for pytest

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(180)
        assert not self._thread.is_alive(), "a good file has not arrived"

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self._every_s):
            name = f"good {number}"
            number += 1
            dropped_at = time.monotonic()
            self._daemon.drop(name)
            while not self._arrived(name) and time.monotonic() < dropped_at + 120 and self._daemon.alive:
                time.sleep(0.01)
            self.durations_s.append(time.monotonic() - dropped_at)
