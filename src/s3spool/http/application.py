"""The WSGI application: routes, and answers that the control socket's handlers give."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

from s3spool.control.peer import Peer
from s3spool.control.protocol import json_line
from s3spool.control.server import Handler
from s3spool.control.status import Status
from s3spool.errors import S3SpoolError
from s3spool.http.guard import Guard
from s3spool.http.metrics import CONTENT_TYPE, Metrics
from s3spool.ledger.rows import from_text
from s3spool.logs.text import shown

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

SHOWN_ROWS = 50  # per state on the page
ORDERS = ("retry", "pause", "resume", "rescan")
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_JSON = "application/json"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", _POLICY),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
]
log = structlog.get_logger()


class Answer(NamedTuple):
    """Status, type and body of a response."""

    status: str
    content_type: str
    body: bytes


class Application:
    """Answers on the server's threads."""

    def __init__(
        self, handlers: Mapping[str, Handler], health: Callable[[], dict[str, str]], metrics: Metrics, guard: Guard
    ) -> None:
        """`health`: the answer of /healthz."""
        self._handlers = handlers
        self._health = health
        self._guard = guard
        self._peer = Peer(os.geteuid(), frozenset())  # the guard has decided who may ask
        self._static = {
            path: (resources.files("s3spool.http").joinpath("static", name).read_bytes(), kind)
            for path, (name, kind) in _FILES.items()
        }
        self._pages: dict[str, Callable[[], Answer]] = {
            "/metrics": lambda: Answer("200 OK", CONTENT_TYPE, metrics.text()),
            "/healthz": self._health_answer,
            "/api/status": lambda: _json("200 OK", self._status()),
            "/api/overview": lambda: _json("200 OK", self._overview()),
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refusal = self._guard.refuse(environ)
        answer = _json(refusal.status, {"error": refusal.reason}) if refusal else self._answer(environ)
        headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body))), *_HEADERS]
        if answer.status.startswith("401"):
            headers.append(("WWW-Authenticate", 'Basic realm="s3spool"'))
        start_response(answer.status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        try:
            if method in {"GET", "HEAD"}:
                return self._read(path)
            if method == "POST":
                return self._order(path, environ)
        except S3SpoolError as exc:
            return _json("400 Bad Request", {"error": str(exc)})
        except Exception as exc:
            log.exception("library.warning", logger="http", message=str(exc))
            return _json("500 Internal Server Error", {"error": f"{type(exc).__name__}: see the daemon's log"})
        return _json("405 Method Not Allowed", {"error": "GET and POST are known"})

    def _read(self, path: str) -> Answer:
        if path in self._static:
            body, kind = self._static[path]
            return Answer("200 OK", kind, body)
        if path not in self._pages:
            return _json("404 Not Found", {"error": "no such page"})
        return self._pages[path]()

    def _health_answer(self) -> Answer:
        answer = self._health()
        return _json("503 Service Unavailable" if answer["status"] == "unhealthy" else "200 OK", answer)

    def _order(self, path: str, environ: WSGIEnvironment) -> Answer:
        command = path.removeprefix("/api/")
        if command not in ORDERS:
            return _json("404 Not Found", {"error": "no such order"})
        body = environ["wsgi.input"].read()
        try:
            request = msgspec.json.decode(body or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as exc:
            return _json("400 Bad Request", {"error": f"the body is no JSON object: {exc}"})
        return _json("200 OK", self._handlers[command](request, self._peer))

    def _overview(self) -> dict[str, Any]:
        """All that the page shows, in one request."""
        return {"status": self._status()} | {state: self._rows(state) for state in ("uploading", "waiting", "parked")}

    def _status(self) -> Status:
        answer: Status = self._handlers["status"]({}, self._peer)
        return answer

    def _rows(self, state: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        after: Any = None
        while len(rows) < SHOWN_ROWS:
            page = self._handlers["list"]({"state": state, "after": after}, self._peer)
            rows += page["rows"]
            after = page["next"]
            if after is None:
                break
        rows.sort(key=lambda row: "bytes_uploaded" not in row)  # those with progress first
        return [{**row, "name": shown(from_text(row["path"]))} for row in rows[:SHOWN_ROWS]]


def _json(status: str, value: object) -> Answer:
    return Answer(status, _JSON, json_line(value))
