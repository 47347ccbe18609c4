"""The keys of boto3's credential chain, renewed by a thread, so that no worker waits for the chain."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

if TYPE_CHECKING:
    import boto3

AHEAD_S = 15 * 60.0  # how long before their expiry botocore begins to renew credentials
REFRESH_S = 60.0  # between questions while the chain has no keys, or only keys that end within AHEAD_S
LONGEST_S = 86400.0  # an expiry in the year 9999 is more seconds than a thread can wait
FIRST_S = 5.0  # a start waits so long for the chain, whose programs and services may never answer
log = structlog.get_logger()


class Snapshot(NamedTuple):
    """Frozen credentials. Never logged: repr hides them."""

    access_key: str
    secret_key: str
    token: str

    def __repr__(self) -> str:
        return "Snapshot(...)"


class Credentials:
    """`current` is None while there are no credentials; any thread may read it without a lock.

    `generation` counts the credentials of another origin: a client of boto3 keeps those that it was made with.
    """

    def __init__(self, session: boto3.Session) -> None:
        self._session = session
        self.current: Snapshot | None = None
        self.generation = 0
        self.error = "boto3's credential chain has not answered yet"
        self.source = ""  #: the link of boto3's chain that had them, in botocore's words
        self._asked = threading.Event()
        self._closing = False
        self._found: object = None
        self.expiry: datetime | None = None  #: None: static keys, or an expiry that botocore does not tell
        self._refreshable = False
        self._thread = threading.Thread(target=self._run, name="credentials", daemon=True)
        self._last_refresh = 0.0
        self._refreshing = threading.Lock()  # boto3's sessions are not thread-safe
        first = threading.Thread(target=self.refresh, name="first keys", daemon=True)
        first.start()
        first.join(FIRST_S)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._asked.set()

    def refresh_soon(self) -> None:
        """Make the thread ask the chain again, at most every two seconds; for any thread, never blocks."""
        self._asked.set()

    def refresh(self) -> None:
        """Ask the chain; block as long as the chain does (metadata service, SSO)."""
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        self._last_refresh = time.monotonic()
        try:
            found: Any = self._session.get_credentials()
            if found is None:
                self.error = "no credentials found by boto3's chain"
                # The chain skips a metadata service that is down: keys that are still valid are kept.
                if self.expiry is None or self.expiry <= datetime.now(UTC):
                    self.current = None
                return
            self.source = getattr(found, "method", "")
            self._refreshable = hasattr(found, "refresh_needed")
            frozen = found.get_frozen_credentials()
            self.expiry = getattr(found, "_expiry_time", None)  # there is no public name for it
            snapshot = Snapshot(frozen.access_key, frozen.secret_key, frozen.token or "")
            if not all(part.isascii() and part.isprintable() for part in snapshot):
                self.current, self.error = None, "the credentials found hold characters that no key has"
                self._forget_cached()
                return
            # `generation` last: a thread that sees it must find its credentials.
            before, self.current, self.error = self.current, snapshot, ""
            if found is not self._found and snapshot != before:
                self._found = found
                self.generation += 1
        except Exception as exc:  # noqa: BLE001 - the chain runs foreign code: programs, plugins, HTTP
            self.error = f"{type(exc).__name__}: {exc}"
            log.warning("library.warning", logger="botocore.credentials", message=self.error)

    def _run(self) -> None:
        while not self._closing:
            asked = self._asked.wait(self._rest_s())
            self._asked.clear()
            if self._closing:
                return
            if asked and time.monotonic() - self._last_refresh < 2.0:  # noqa: PLR2004 - seconds
                continue
            if asked:
                self._forget_cached()
            self.refresh()

    def _rest_s(self) -> float | None:
        """Return the seconds until the next question; None for static keys, which only a refusal by S3 renews.

        After a jump of the clock they may be too many: then a refusal by S3 wakes the thread.
        """
        if self.current is not None and not self._refreshable:
            return None
        if self.current is None or self.expiry is None:
            return REFRESH_S
        ahead_s = (self.expiry - datetime.now(UTC)).total_seconds() - AHEAD_S
        return min(max(ahead_s, REFRESH_S), LONGEST_S)

    def _forget_cached(self) -> None:
        """Make botocore look for new keys: it keeps the first that it found."""
        self._session._session._credentials = None  # type: ignore[attr-defined] # noqa: SLF001 - no public way
