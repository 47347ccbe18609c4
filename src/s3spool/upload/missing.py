"""Files of the retry list that this daemon does not find, although another daemon may see them."""

from __future__ import annotations

import threading

LATE_S = 60.0  # how late a host may see what other hosts do in a shared folder (NFS: acdirmax)
PAUSE_S = 10.0  # between two attempts to find a file
LIMIT = 10_000  # files that are remembered


class MissingFiles:
    """Thread-safe; `now` is in monotonic seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._missed: dict[str, tuple[float, float]] = {}  # path -> first and last time
        self.same_folder = True  #: whether this daemon sees the markers of all others

    def is_gone(self, path: str, now: float) -> bool:
        """Called when the file was not found: whether no daemon can see it any more."""
        with self._lock:
            first, _ = self._missed.get(path, (now, now))
            gone = self.same_folder and now - first >= LATE_S
            if gone:
                self._missed.pop(path, None)
            elif path in self._missed or len(self._missed) < LIMIT:
                self._missed[path] = first, now
            return gone

    def left_to_others(self, now: float) -> set[str]:
        """The files that were not found a moment ago."""
        with self._lock:
            self._missed = {path: times for path, times in self._missed.items() if now - times[1] < LATE_S}
            return {path for path, (_, last) in self._missed.items() if now - last < PAUSE_S}
