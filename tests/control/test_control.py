"""The control socket: questions answered, garbage refused, and nobody who holds it can hold up the others."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from s3spool.control import protocol as control_protocol
from s3spool.control import server as control
from s3spool.control.protocol import NoDaemonError, ask
from s3spool.control.server import ControlServer
from s3spool.errors import S3SpoolError
from support.lines import recorded
from support.waiting import eventually

WAIT_S = 20.0
SHORT_S = 0.5

Serve = Callable[..., ControlServer]


@pytest.fixture
def path() -> Iterator[Path]:
    """A short one: pytest's own directories may be too long for a socket."""
    place = Path(f"/tmp/s3spool-test-{os.getpid()}.sock")  # noqa: S108 - named after this process
    yield place
    place.unlink(missing_ok=True)


@pytest.fixture
def serve(path: Path) -> Iterator[Serve]:
    """Servers that end with the test."""
    servers: list[ControlServer] = []

    def serve(**handlers: Any) -> ControlServer:
        servers.append(ControlServer(path, {"echo": lambda request, _: request, **handlers}))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_S)

    def connect() -> bool:
        with suppress(BlockingIOError):  # the kernel's queue is full
            connection.connect(str(path))
            return True
        return False

    eventually(connect, timeout_s=WAIT_S)
    return connection


@contextmanager
def listening(path: Path, act: Callable[[socket.socket], object]) -> Iterator[None]:
    """A listener that is no daemon, and acts on its first connection."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            connection, _ = listener.accept()
            with closing(connection), suppress(OSError):
                act(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield
        thread.join()


def test_question_and_answer(path: Path, serve: Serve) -> None:
    """The handler's answer comes back, and the handler hears who asked."""
    serve(who=lambda _, peer: [peer.uid, sorted(peer.groups)])

    assert ask(path, "echo", path="a", n=1) == {"path": "a", "n": 1}
    assert ask(path, "who") == [os.getuid(), sorted({os.getgid(), *os.getgroups()})]


def test_socket_belongs_to_user_and_group(path: Path, serve: Serve) -> None:
    """Mode 0660, whatever the umask, which stays as it was; and it goes with the server."""
    before = os.umask(0)
    try:
        server = serve()
        assert os.umask(0) == 0
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    server.close()
    assert not path.exists()


def test_socket_of_a_killed_daemon_is_replaced(path: Path, serve: Serve) -> None:
    """What is left behind answers nobody, and does not keep the next daemon from listening."""
    with closing(socket.socket(socket.AF_UNIX)) as left_behind:
        left_behind.bind(str(path))
    with pytest.raises(NoDaemonError, match=r"no daemon runs: nobody answers at .* \(Connection refused\)"):
        ask(path, "echo")

    serve()
    assert ask(path, "echo", n=1) == {"n": 1}


def test_no_socket_is_no_daemon(path: Path) -> None:
    """One line says where nobody answers."""
    with pytest.raises(NoDaemonError, match=f"nobody answers at {path} \\(No such file or directory\\)"):
        ask(path, "echo")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"not json\n",
        b"[]\n",
        b"{}\n",
        b"\xff\xfe\n",
        b'{"command": []}\n',
        b'{"command": "nope"}\n',
        b'{"command": "echo"',
        b"[" * 100_000 + b"\n",
        b'{"command": ' + b"[" * 100_000 + b"\n",
        b'{"a": ' * 40_000 + b"\n",
        b"x" * control.MAX_REQUEST_BYTES,
    ],
    ids=lambda garbage: repr(garbage[:20]),
)
def test_garbage_is_refused_in_one_line(garbage: bytes, path: Path, serve: Serve) -> None:
    """And the next one is answered."""
    serve()

    with closing(connected(path)) as connection, connection.makefile("rb") as lines:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        answer = lines.read()

    assert answer.count(b"\n") == 1
    assert json.loads(answer)["error"].startswith("not a request this daemon knows")
    assert ask(path, "echo", n=1) == {"n": 1}


def test_too_much_garbage(path: Path, serve: Serve) -> None:
    """A request without an end is cut off, and costs its sender the connection, not the server its memory."""
    serve()

    with closing(connected(path)) as connection, pytest.raises(OSError, match=r"Broken pipe|reset"):
        connection.sendall(b"x" * 100 * control.MAX_REQUEST_BYTES)

    assert ask(path, "echo", n=1) == {"n": 1}


def test_what_goes_wrong_is_told(path: Path, serve: Serve) -> None:
    """Our own errors as they are; a bug by its name, and in the log."""

    def refuse(*_: object) -> None:
        raise S3SpoolError("caf\udce9: is not there")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    serve(refuse=refuse, fail=fail)

    with pytest.raises(S3SpoolError, match=r"^caf\\xe9: is not there$"):
        ask(path, "refuse")
    with recorded() as lines, pytest.raises(S3SpoolError, match=r"^ZeroDivisionError: a bug$"):
        ask(path, "fail")
    assert [line["logger"] for line in lines.named("library.warning")] == ["control"]


def test_names_that_are_not_utf8_break_no_answer(path: Path, serve: Serve) -> None:
    """A last error may quote a file's name: that must not make the status unreadable."""
    serve(status=lambda *_: {"last_error": "upload caf\udce9: gone"})

    assert ask(path, "status") == {"last_error": r"upload caf\xe9: gone"}


SOON_S = 15.0  # half of what a connection may last: nobody waits for the end of another one


def asked_soon(path: Path, **arguments: Any) -> None:
    """Raises where the answer to one more question of this user takes more than a moment."""
    before = time.monotonic()
    assert ask(path, "echo", **arguments) == arguments
    assert time.monotonic() - before < SOON_S


@pytest.mark.parametrize("crowd", [8, 40, 200])
def test_idle_connections_of_a_user_do_not_delay_that_user(crowd: int, path: Path, serve: Serve) -> None:
    """The oldest ones end where there are too many, and nothing counts the rest."""
    serve()
    with ExitStack() as stack:
        for _ in range(crowd):
            stack.enter_context(closing(connected(path)))
        asked_soon(path, n=1)


def test_clients_that_do_not_read_do_not_delay_the_same_user(path: Path, serve: Serve) -> None:
    """More than the socket holds for each: no thread waits until such a client reads."""
    serve(much=lambda *_: "x" * 1_000_000)
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(9):
            connection = stack.enter_context(closing(connected(path)))
            connection.sendall(b'{"command": "much"}\n')
            assert connection.recv(1)
        asked_soon(path, n=1)
        eventually(lambda: threading.active_count() <= before, timeout_s=WAIT_S)


def test_a_command_that_hangs_does_not_delay_another_one(path: Path, serve: Serve) -> None:
    """A question about a file on a dead mount may hang: `status` is answered, and threads do not pile up."""
    end = threading.Event()
    serve(hang=lambda *_: end.wait(WAIT_S))
    before = threading.active_count()
    with ExitStack() as stack:
        stack.callback(end.set)
        for _ in range(9):
            stack.enter_context(closing(connected(path))).sendall(b'{"command": "hang"}\n')
        eventually(lambda: threading.active_count() > before, timeout_s=WAIT_S)
        asked_soon(path, n=1)
        eventually(lambda: threading.active_count() <= before + control._THREADS, timeout_s=WAIT_S)


@pytest.mark.parametrize("said", [b"", b'{"command": ', b'{"command": "much"}\n'])
def test_one_deadline_for_a_request(said: bytes, path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, half a request, and an answer that is not read end alike."""
    monkeypatch.setattr(control, "TIMEOUT_S", SHORT_S)
    server = serve(much=lambda *_: "x" * 10_000_000)
    with closing(connected(path)) as connection:
        connection.sendall(said)
        eventually(lambda: server._connections, timeout_s=WAIT_S)
        eventually(lambda: not server._connections, timeout_s=WAIT_S)
        with suppress(ConnectionResetError), connection.makefile("rb") as answer:
            assert b"\n" not in answer.read()


def test_drips_do_not_extend_the_deadline(path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no progress."""
    monkeypatch.setattr(control, "TIMEOUT_S", SHORT_S)
    serve()
    with closing(connected(path)) as connection, pytest.raises(OSError, match=r"Broken pipe|reset"):  # noqa: PT012 - the loop is the act
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            connection.send(b" ")
            threading.Event().wait(SHORT_S / 10)


def test_busy_is_not_absent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel's queue is full a daemon runs: nobody may go on as if there were none."""
    monkeypatch.setattr(control_protocol, "TIMEOUT_S", SHORT_S)
    with ExitStack() as stack:
        listener = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        listener.bind(str(path))
        listener.listen(0)
        stack.enter_context(closing(connected(path)))  # fills it

        with pytest.raises(S3SpoolError, match="does not answer within") as caught:
            ask(path, "echo")
    assert not isinstance(caught.value, NoDaemonError)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"", "went away in the middle of its answer"),
        (b'{"answer":1', "went away in the middle of its answer"),
        (b"1\n", "does not answer as it should"),
        (b'{"row":1}\n', "does not answer as it should"),
        (b'{"answer":' + b"[" * 100_000 + b"\n", "does not answer as it should"),
        (b"HTTP/1.1 400 Bad Request\r\n", "does not answer as it should"),
    ],
)
def test_half_an_answer_is_no_answer(said: bytes, problem: str, path: Path) -> None:
    """A daemon that dies while it lists files must not look like one that has listed them all."""

    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(said)

    with listening(path, answer), pytest.raises(S3SpoolError, match=problem) as caught:
        ask(path, "list")
    assert not isinstance(caught.value, NoDaemonError)


@pytest.mark.parametrize("said", [b"x" * 1000, b" "])
def test_an_endless_answer_is_cut_off(said: bytes, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither memory nor time without end, whatever listens there."""
    monkeypatch.setattr(control_protocol, "MAX_ANSWER_BYTES", 100_000)
    monkeypatch.setattr(control_protocol, "TIMEOUT_S", SHORT_S)

    def answer(connection: socket.socket) -> None:
        while True:
            connection.sendall(said)
            threading.Event().wait(0 if len(said) > 1 else SHORT_S / 10)

    problem = r"more than 100000 bytes|does not answer within 0.5 s"
    with listening(path, answer), pytest.raises(S3SpoolError, match=problem):
        ask(path, "status")


def test_a_daemon_killed_a_moment_ago_is_absent(path: Path) -> None:
    """The kernel takes a call while the process is being cleared away, and then hangs up: the ledger can answer."""

    def hang_up(connection: socket.socket) -> None:
        connection.recv(1, socket.MSG_PEEK)  # what is left unread makes close() a reset

    with listening(path, hang_up), pytest.raises(NoDaemonError, match="ended a moment ago"):
        ask(path, "status")


def test_close_waits_for_nobody(path: Path, serve: Serve) -> None:
    """A client that is still being answered does not keep the daemon from stopping."""
    begun, end = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        begun.set()
        end.wait(WAIT_S)

    server = serve(slow=slow)
    with closing(connected(path)) as connection:
        connection.sendall(b'{"command": "slow"}\n')
        assert begun.wait(WAIT_S)
        server.close()
        assert not end.is_set()
        with pytest.raises(NoDaemonError):
            ask(path, "echo")
        end.set()
