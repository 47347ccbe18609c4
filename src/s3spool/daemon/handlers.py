"""The daemon's answers to the commands of the control socket."""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from s3spool import __version__
from s3spool.control import views as view
from s3spool.control.access import Access, Sight
from s3spool.control.peer import Peer
from s3spool.control.rules import prefix_of, with_rule
from s3spool.control.server import Handler
from s3spool.daemon.operator_pause import pause_orders
from s3spool.daemon.supervisor import Daemon
from s3spool.errors import S3SpoolError
from s3spool.ledger.protocol import LedgerReader
from s3spool.ledger.rows import from_text, to_text
from s3spool.queue.settle import SettleReason
from s3spool.upload.stats import Stats

DURABLE_S = 10.0
HANGING_LISTED = 10
LISTED = 100_000  # more than the inbox holds by default


def handlers(daemon: Daemon) -> dict[str, Handler]:
    """One function per command; each runs on a thread of the control server."""
    answers = _Answers(daemon)
    orders: dict[str, Handler] = {
        "list": answers.page,
        "retry": answers.retry,
        "forget": answers.forget,
        "rescan": answers.rescan,
        **pause_orders(daemon),
    }
    return {
        "status": answers.status,
        "why": answers.why,
        "progress": answers.progress,
        "where": answers.where,
    } | {command: answers.access.controllers_only(command, handler) for command, handler in orders.items()}


class _Answers:
    def __init__(self, daemon: Daemon) -> None:
        self.access = Access(daemon.config.service.control_group, daemon.components.folder.root)
        self._daemon = daemon
        self._components = daemon.components
        self._rate = _Rate(daemon.components.stats)

    def status(self, _: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
        daemon, components = self._daemon, self._components
        queued, in_flight = components.inbox.counts()
        jobs = components.workers.jobs()
        reason = components.breaker.reason
        with self._reader() as reader:
            counts = reader.counts()
        held = components.pause.current
        paused = components.breaker.open or held is not None
        since = held.since if held else components.breaker.paused_at
        reasons = [held.words] if held else []
        reasons += [f"{reason.code}: {reason.cause}"] if reason else []
        watch = daemon.watch_manager.watch  # read once: the supervisor may replace it at any moment
        files_per_s, bytes_per_s = self._rate.now()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": view.iso(components.stats.started),
            "state": "paused" if paused and daemon.state == "running" else daemon.state,
            "destination": {
                "bucket": daemon.config.destination.bucket,
                "prefix": daemon.config.destination.prefix,
                "endpoint": components.store.endpoint.url,
                "state": "paused" if paused else "slowed" if components.limiter.slowed_at else "open",
                "since": None if since is None else view.iso(since),
                "reason": "; ".join(reasons) or None,
                "by_hand": held is not None,
            },
            "watch": {
                "directory": str(components.folder.root),
                "backend": daemon.watch_manager.backend,
                "overflows": watch.overflows if watch else 0,
                "files_missed": components.scan.missed,
                "too_deep": [to_text(path) for path in components.scan.deep.paths()],
            },
            "files": {
                "settling": len(components.settle),
                "queued": queued,
                "uploading": in_flight,
                "waiting": counts["waiting"],
                "parked": counts["parked"],
                "uploaded": components.stats.uploaded,
                "vanished": components.stats.vanished,
                "excluded": components.scan.excluded,
            },
            "bytes": {
                "uploaded": components.stats.bytes_uploaded,
                "in_flight": sum(job.size for job in jobs),
            },
            "rate": {"files_per_s": files_per_s, "bytes_per_s": bytes_per_s},
            "large_files": [
                {"path": to_text(path), "bytes": size, "bytes_uploaded": done}
                for path, done, size in components.large.progress()
                if self.access.sight(peer, path) is Sight.ALL
            ],
            "hanging": [to_text(path) for path in [*components.scan.mounts.hanging(), *daemon.hanging]][
                :HANGING_LISTED
            ],
            "oldest_unsent_s": daemon.oldest_unsent_s(),
            "last_error": components.stats.last_error if self.access.controls(peer) else None,  # it names a file
        }

    def page(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        """One page of `list`, and the start of the next one."""
        state = request.get("state")
        if state not in (None, "queued", "uploading", *view.LEDGER_STATES):
            raise S3SpoolError("not a request this daemon knows: there is no such state")
        cursor = _cursor(request.get("after"))
        queued, uploading = (list(map(to_text, paths)) for paths in self._components.inbox.listing(LISTED))
        if cursor.section == "memory":
            rows, following = self._in_memory(state, cursor, queued, uploading)
        else:
            with self._reader() as reader:
                rows, following = view.page(reader, state, cursor)
            underway = {*queued, *uploading}  # a file that is tried again is still in the retry list
            rows = [row for row in rows if row["state"] == "uploaded" or row["path"] not in underway]
        return {"rows": rows, "next": following}

    def _in_memory(
        self, state: str | None, cursor: view.Cursor, queued: Sequence[str], uploading: Sequence[str]
    ) -> tuple[list[dict[str, Any]], view.Cursor | None]:
        states = dict.fromkeys(queued, "queued") | dict.fromkeys(uploading, "uploading")
        behind = (path for path, its in states.items() if path > cursor.after and state in {None, its})
        paths = heapq.nsmallest(view.PAGE_ROWS, behind)
        large = {to_text(path): (done, size) for path, done, size in self._components.large.progress()}
        rows: list[dict[str, Any]] = [{"path": path, "state": states[path]} for path in paths]
        for row in rows:
            if row["path"] in large and row["state"] == "uploading":
                row["bytes_uploaded"], row["bytes"] = large[row["path"]]
        if len(paths) == view.PAGE_ROWS:
            return rows, cursor._replace(after=paths[-1])
        return rows, view.Cursor("retries") if state in {None, *view.LEDGER_STATES} else None

    def why(self, request: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
        path = _path(request.get("path"))
        sight = self.access.checked(peer, path)
        daemon, components = self._daemon, self._components
        live = components.inbox.state_of(path)
        if live is None and components.settle.knows([path]):
            live = "settling"
        if live == "queued" and (components.breaker.open or components.pause.current):
            live = "paused"
        # The ledger before the folder: a file that is sent and removed in between has its receipt.
        with self._reader() as reader:
            known = reader.known([path]).get(path)
        answer = view.why(
            path,
            known,
            view.identity_of(components.folder, path, known),
            live=live,
            left_out=view.left_out(path, components.scan.names, recursive=daemon.config.watch.recursive),
            destination=components.ledger.destination,
        )
        answer = with_rule(answer, daemon.config, path)
        return answer if sight is Sight.ALL else {name: answer[name] for name in ("path", "state", "why")}

    def retry(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        """Make waiting and parked files due now; a paused destination is probed at once."""
        components = self._components
        paths = None if request.get("all") is True else [_path(path) for path in _list(request.get("paths"))]
        with self._reader() as reader:
            released = view.releasable(reader, paths)
        done = threading.Event()
        components.ledger.release(paths, done.set)
        _durable(done)
        components.retry.wake()
        components.breaker.probe_now()
        self._daemon.wake()  # `systemctl status` counts them
        return {"released": released}

    def forget(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        """Drop the ledger's rows of a path; if the file is still there, it is sent again."""
        path = _path(request.get("path"))
        daemon, components = self._daemon, self._components
        with self._reader() as reader:
            known = path in reader.known([path])
        done = threading.Event()
        components.ledger.forget(path, done.set)
        _durable(done)
        daemon.wake()  # as in `retry`
        ours = view.ours(path, components.scan.names, recursive=daemon.config.watch.recursive)
        # Not by a scan: it would count the file as one that the watch has missed.
        if ours and view.identity_of(components.folder, path) and not components.settle.add(path, SettleReason.CHANGED):
            components.scan.want("full")
        return {"forgotten": known}

    def rescan(self, _: Mapping[str, Any], __: Peer) -> dict[str, Any]:
        """Start a scan; its number can be waited for with `progress` of the same pid."""
        number = self._components.scan.started + 1
        self._components.scan.want("request")
        return {"pid": os.getpid(), "scan": number}

    def progress(self, _: Mapping[str, Any], __: Peer) -> dict[str, Any]:
        """The figures that `wait` waits for."""
        components = self._components
        # In the order of the flow: a file that moves on meanwhile is not missed.
        finished = components.scan.finished
        settling = components.settle.unfinished()
        queued, in_flight = components.inbox.counts()
        with self._reader() as reader:
            counts = reader.counts()
        return {
            "pid": os.getpid(),
            "scan": finished,
            "left": settling + queued + in_flight + counts["waiting"],
            "parked": counts["parked"],
            # A scan of a folder that is gone ends at once and finds nothing.
            "folder_there": components.folder.still_there(),
        }

    def where(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        """What the command line may have set: names are resolved and the key of `path` is made with it."""
        folder = str(self._components.folder.root)
        path = _path(request["path"]) if request.get("path") else ""
        return {"below_root": to_text(folder[1:]), **prefix_of(self._daemon.config, path)}

    def _reader(self) -> LedgerReader:
        return self._components.ledger.reader()


def _path(text: object) -> str:
    """A relative path that stays in the folder, from the ledger's spelling. Raises S3SpoolError."""
    if isinstance(text, str):
        with contextlib.suppress(UnicodeEncodeError):
            path = from_text(text)
            if "\0" not in path and not {"", ".", ".."} & set(path.split("/")):
                return path
    raise S3SpoolError("not a request this daemon knows: a relative path is missing or wrong")


def _cursor(value: object) -> view.Cursor:
    if value is None:
        return view.Cursor("memory")
    match value:
        case ["memory" | "retries" | "receipts" as section, str(after)]:
            return view.Cursor(section, after)
    raise S3SpoolError("not a request this daemon knows: there is no such page")


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


class _Rate:
    """Files and bytes per second since the previous call (at least a second ago)."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._lock = threading.Lock()
        self._before = (time.monotonic(), 0, 0)
        self._last = (0.0, 0.0)

    def now(self) -> tuple[float, float]:
        with self._lock:
            at, files, size = self._before
            elapsed_s = time.monotonic() - at
            if elapsed_s >= 1.0:
                stats = self._stats
                self._last = (
                    round((stats.uploaded - files) / elapsed_s, 1),
                    round((stats.bytes_uploaded - size) / elapsed_s, 1),
                )
                self._before = (time.monotonic(), stats.uploaded, stats.bytes_uploaded)
            return self._last


def _durable(done: threading.Event) -> None:
    if not done.wait(DURABLE_S):
        raise S3SpoolError("the ledger does not answer: see `s3spool status` and the log")
