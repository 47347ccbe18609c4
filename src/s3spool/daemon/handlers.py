"""The requests that a running daemon answers on its control socket."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Mapping
from typing import Any

from msgspec import to_builtins

from s3spool import __version__
from s3spool.control import views
from s3spool.control.access import Access, Sight
from s3spool.control.peer import Peer
from s3spool.control.server import Handler
from s3spool.control.status import Bytes, Destination, Node, Status, Watch
from s3spool.daemon.supervisor import Daemon
from s3spool.daemon.top_view import top_orders
from s3spool.errors import LedgerUnavailableError, S3SpoolError
from s3spool.folder.rules import FileRules
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.queries import LedgerReader
from s3spool.ledger.rows import from_text, to_text

DURABLE_S = 10.0
HANGING_LISTED = 10
MAX_REASON = 500  # characters


def handlers(daemon: Daemon) -> dict[str, Handler]:
    """One function per command; each runs on a thread of the control server."""
    answers = _Answers(daemon)
    orders: dict[str, Handler] = {
        "list": answers.page,
        "retry": answers.retry,
        "forget": answers.forget,
        "rescan": answers.rescan,
        "pause": answers.pause,
        "resume": answers.resume,
        **top_orders(daemon, answers.status, answers.page),
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

    def status(self, _: Mapping[str, Any], peer: Peer) -> Status:
        daemon, components = self._daemon, self._components
        breaker, held = components.breaker, components.pause.current
        reason = breaker.reason
        paused = breaker.open or held is not None
        since = held.since if held else breaker.paused_at
        reasons = [held.words] if held else []
        reasons += [f"{reason.code}: {reason.cause}"] if reason else []
        files = daemon.files.count()
        files.vanished, files.excluded = components.stats.vanished, components.scan.excluded
        watch = daemon.watch_manager.watch  # once: the supervisor may replace it at any moment
        destination = daemon.config.destination
        hanging = [*components.scan.mounts.hanging(), *daemon.liveness.hanging_files][:HANGING_LISTED]
        large = daemon.files.large_files().items()
        return Status(
            version=__version__,
            pid=os.getpid(),
            started=views.iso(components.stats.started),
            state="paused" if paused and daemon.state == "running" else daemon.state,
            destination=Destination(
                bucket=destination.bucket,
                prefix=destination.prefix,
                endpoint=components.store.endpoint.url,
                state="paused" if paused else "slowed" if components.limiter.slowed_at else "open",
                since=None if since is None else views.iso(since),
                reason="; ".join(reasons) or None,
                by_hand=held is not None,
            ),
            watch=Watch(
                directory=str(components.folder.root),
                backend=daemon.watch_manager.backend,
                overflows=watch.overflows if watch else 0,
                files_missed=components.scan.missed,
                too_deep=[to_text(path) for path in components.scan.deep.paths()],
            ),
            files=files,
            bytes=Bytes(
                uploaded=daemon.files.ledger.now().uploaded_bytes,
                in_flight=sum(job.size for job in components.workers.jobs()),
                unsent=daemon.files.unsent_bytes(),
            ),
            rate=daemon.rate.now(),
            large_files=[file for path, file in large if self.access.sight(peer, path) is Sight.ALL],
            hanging=[to_text(path) for path in hanging],
            nodes=self._nodes(),
            oldest_unsent_s=daemon.files.oldest_unsent_s(),
            last_error=components.stats.last_error if self.access.controls(peer) else None,  # it names a file
        )

    def _nodes(self) -> list[Node]:
        """None while a shared ledger is away."""
        try:
            with self._reader() as reader:
                return views.living(reader, self._daemon.config.destination.ledger_name, self._components.ledger.owner)
        except LedgerUnavailableError:
            if self._components.ledger.claims is None:
                raise
            return []

    def page(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        """One page of `list`, and where the next one begins."""
        only = request.get("state")
        if only not in (None, views.UNSENT, *views.STATES):  # it may be anything
            raise S3SpoolError("not a request this daemon knows: there is no such state")
        cursor = _cursor(request.get("after"))
        states = {to_text(path): (path, state) for path, state in self._daemon.files.in_memory().items()}
        if cursor.section == "memory":
            rows, following = self._in_memory(only, cursor, states)
        else:
            with self._reader() as reader:
                rows, following = views.page(reader, only, cursor)
            rows = [row for row in rows if row["path"] not in states]  # one path, one row
        return {"rows": rows, "next": following}

    def _in_memory(
        self, only: str | None, cursor: views.Cursor, states: Mapping[str, tuple[str, str]]
    ) -> tuple[list[dict[str, Any]], views.Cursor | None]:
        behind = (text for text, (_, state) in states.items() if text > cursor.after and views.wanted(state, only))
        texts = heapq.nsmallest(views.PAGE_ROWS, behind)
        rows = [self._daemon.files.row(*states[text]) for text in texts]
        large = self._daemon.files.large_files() if "uploading" in {row["state"] for row in rows} else {}
        for row, text in zip(rows, texts, strict=True):
            if file := large.get(states[text][0]):
                row.update(to_builtins(file))
        if len(texts) == views.PAGE_ROWS:
            return rows, cursor._replace(after=texts[-1])
        return rows, views.Cursor("nodes" if self._components.ledger.claims else "retries")

    def why(self, request: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
        path = _path(request.get("path"))
        sight = self.access.checked(peer, path)
        daemon, components = self._daemon, self._components
        live = daemon.files.live(path)
        # The ledger before the folder: a file that is sent and removed in between has its receipt.
        with self._reader() as reader:
            node = reader.holders([path]).get(path)
            known = reader.known([path]).get(path)
        answer = views.why(
            path,
            known,
            views.identity_of(components.folder, path, known),
            live=live or (views.on_node(node) if node else None),
            left_out=views.left_out(path, components.scan.names, recursive=daemon.config.watch.recursive),
            destination=components.ledger.destination,
        )
        answer = views.with_rule(answer, FileRules(daemon.config), path)
        return answer if sight is Sight.ALL else {name: answer[name] for name in ("path", "state", "why")}

    def retry(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        """Make waiting and parked files due now; a paused destination is probed at once."""
        components = self._components
        paths = None if request.get("all") is True else [_path(path) for path in _list(request.get("paths"))]
        with self._reader() as reader:
            released = views.releasable(reader, paths)
        probing = components.breaker.open
        components.ledger.release(paths, components.retry.wake)  # a disk that is full now may do it later
        components.breaker.probe_now()
        _durable(components.ledger)
        self._daemon.wake()  # `systemctl status` counts them
        return {"released": released, "probing": probing}

    def forget(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        """Drop what the ledger knows of a path; if the file is still there, it is sent again."""
        path = _path(request.get("path"))
        daemon, components = self._daemon, self._components
        with self._reader() as reader:
            known = path in reader.known([path])
        left_out = views.left_out(path, components.scan.names, recursive=daemon.config.watch.recursive)
        here = not left_out and views.identity_of(components.folder, path) is not None

        def send_again() -> None:
            # Not by a scan: it would count the file as one that the watch has missed.
            if here and not components.settle.add(path):
                components.scan.want("full")

        components.ledger.forget(path, send_again)
        _durable(components.ledger)
        daemon.wake()  # the same
        return {"forgotten": known}

    def rescan(self, _: Mapping[str, Any], __: Peer) -> dict[str, Any]:
        """Start a scan; its number can be waited for with `progress` of the same pid."""
        number = self._components.scan.started + 1
        self._components.scan.want("request")
        return {"pid": os.getpid(), "scan": number}

    def pause(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        reason = request.get("reason", "")
        if not isinstance(reason, str) or len(reason) > MAX_REASON:
            raise S3SpoolError(f"the reason must be a text of at most {MAX_REASON} characters")
        try:
            return {"since": views.iso(self._components.pause.pause(reason.strip()).since)}
        finally:
            self._daemon.wake()  # `systemctl status` shows it

    def resume(self, _: Mapping[str, Any], __: Peer) -> dict[str, Any]:
        try:
            return {"resumed": self._components.pause.resume()}
        finally:
            self._daemon.wake()  # the same

    def progress(self, _: Mapping[str, Any], __: Peer) -> dict[str, Any]:
        """The figures that `wait` needs."""
        return self._daemon.files.progress() | {"pid": os.getpid()}

    def where(self, request: Mapping[str, Any], _: Peer) -> dict[str, Any]:
        """What the command line may have set: names are resolved and the key of `path` is made with it."""
        folder = str(self._components.folder.root)
        path = _path(request["path"]) if request.get("path") else ""
        return {"below_root": to_text(folder[1:]), **views.prefix_of(self._daemon.config, path)}

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


def _cursor(value: object) -> views.Cursor:
    if value is None:
        return views.Cursor("memory")
    match value:
        case ["memory" | "nodes" | "retries" | "receipts" as section, str(after)]:
            return views.Cursor(section, after)
    raise S3SpoolError("not a request this daemon knows: there is no such page")


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _durable(ledger: LedgerBackend) -> None:
    if not ledger.flush(DURABLE_S):
        raise S3SpoolError("the ledger does not answer: see `s3spool status` and the log")
