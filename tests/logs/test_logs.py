"""The log thread, its formats, and what hostile names and secrets look like in them."""

from __future__ import annotations

import ast
import errno
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from s3spool.logs import journal
from s3spool.logs import log_thread as logs
from s3spool.logs.events import EVENTS, message
from s3spool.logs.log_thread import LogWriter
from s3spool.logs.render import to_console, to_json
from s3spool.logs.sinks import Entry, StreamSink
from s3spool.logs.text import masked
from support.daemon import Daemon, to_toml
from support.processes import finished
from support.waiting import eventually

ROOT = Path(__file__).parents[2]
NOON_NS = 1_700_000_000_000_000_000
ODD_NAMES = ["two\nlines", "\x1b[2Jclear", "caf\udce9", "\u2028\u2029\x85\x0b\x0c", "\u202etxt.exe", '"}\n{"', "\0"]

# Any bytes a file system accepts, and any str at all, lone surrogates included.
names = st.binary().map(os.fsdecode) | st.text(st.characters(codec=None))


@pytest.fixture(autouse=True)
def _structlog_restored() -> Iterator[None]:
    """structlog's configuration is global; give each test a fresh one and leave none behind."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    logs._processors.clear()


class Pipe:
    """A real pipe: `stream` is what the daemon calls stderr."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        self.stream = os.fdopen(writer, "w")

    def lines(self) -> list[str]:
        data = b""
        while True:
            try:
                chunk = os.read(self._reader, 65536)
            except BlockingIOError:
                break
            if not chunk:
                break
            data += chunk
        return data.decode().split("\n")[:-1]

    def drain(self) -> list[str]:
        """All that comes until the writing end is closed."""
        os.set_blocking(self._reader, True)
        with os.fdopen(os.dup(self._reader), encoding="utf-8", newline="\n") as reader:
            return reader.read().split("\n")[:-1]

    def abandon(self) -> None:
        os.close(self._reader)
        self._reader = -1

    def close(self) -> None:
        self.stream.close()
        if self._reader >= 0:
            os.close(self._reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def start(pipe: Pipe) -> Iterator[Callable[..., LogWriter]]:
    """`logs.configure`, writing to the pipe; whatever was started is closed."""
    writers: list[LogWriter] = []

    def start(form: str = "json", level: str = "info", stream: Any = None) -> LogWriter:
        writers.append(logs.configure(form, level, stream or pipe.stream))
        return writers[-1]

    yield start
    for writer in writers:
        assert writer.close(timeout_s=10)


def written(writer: LogWriter, pipe: Pipe) -> list[dict[str, Any]]:
    """The JSON lines so far."""
    assert writer.flush(5)
    return [json.loads(line) for line in pipe.lines()]


def entry(event: str = "file.uploaded", /, **fields: object) -> Entry:
    return logs._tidy(Entry(NOON_NS, "info", event, fields))


def test_json_line_has_the_documented_order(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """timestamp, level and event come first, then the fields as they were given."""
    writer = start()

    structlog.get_logger().info("file.uploaded", path="a.txt", bytes=3, duration_s=0.041)

    (line,) = written(writer, pipe)
    assert list(line) == ["timestamp", "level", "event", "path", "bytes", "duration_s"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])


def test_lines_keep_their_order_across_batches(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """Batching changes how many writes there are, not what is written."""
    writer = start()

    for number in range(600):
        structlog.get_logger().info("n", n=number)

    assert [line["n"] for line in written(writer, pipe)] == list(range(600))


def test_level_changes_while_loggers_are_in_use(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """A logger bound before `set_level` follows it: that is what SIGHUP promises."""
    writer = start(level="warning")
    log = structlog.get_logger().bind(worker=1)

    log.info("unheard")
    writer.set_level("debug")
    log.debug("heard")

    assert [line["event"] for line in written(writer, pipe)] == ["heard"]


def test_a_second_configure_takes_over_loggers_in_use(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """Cached loggers are not left talking to the first writer."""
    log = structlog.get_logger()
    start(stream=io.StringIO())
    log.info("first")
    second = start()

    log.info("second")

    assert [line["event"] for line in written(second, pipe)] == ["second"]


def test_stalled_reader_costs_lines_but_never_a_caller(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """With nobody reading, calls return, lines are counted, and `log.dropped` accounts for each of them."""
    writer = start()
    log = structlog.get_logger()
    logged = 2 * logs.QUEUE_LINES

    for number in range(logged):
        log.info("file.uploaded", path=f"{number:06}.txt")
    assert not writer.flush(0.05)
    assert writer._queue.qsize() <= logs.QUEUE_LINES + 1
    dropped = writer.dropped
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(pipe.drain()))
    reader.start()
    assert writer.close(timeout_s=30)
    pipe.stream.close()
    reader.join()

    events = [json.loads(line) for line in lines]
    reports = [event["lines"] for event in events if event["event"] == "log.dropped"]
    assert dropped > 0
    assert sum(reports) == dropped
    assert len(events) - len(reports) + dropped == logged


def test_reader_that_is_gone_is_survived(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """EPIPE loses lines and counts them; it does not end the log thread."""
    writer = start()
    pipe.abandon()

    structlog.get_logger().info("one")
    assert writer.flush(5)
    structlog.get_logger().info("two")
    assert writer.flush(5)

    assert writer.dropped == 2


def test_stalled_reader_does_not_hold_up_the_end(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """`close` gives up after its time; the thread is a daemon and cannot keep the process alive."""
    writer = start()
    for _ in range(3000):
        structlog.get_logger().info("x", padding="x" * 100)

    assert writer.close(timeout_s=0.05) is False
    assert writer._thread.daemon

    pipe.abandon()


def test_non_blocking_stderr_is_waited_for(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """Another program may have made the shared terminal non-blocking; EAGAIN must not cost lines."""
    os.set_blocking(pipe.stream.fileno(), False)
    writer = start()
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(pipe.drain()))

    for _ in range(3000):
        structlog.get_logger().info("x", padding="x" * 100)
    reader.start()
    assert writer.close(timeout_s=30)
    pipe.stream.close()
    reader.join()

    assert len(lines) == 3000
    assert all(json.loads(line)["event"] == "x" for line in lines)


def test_line_torn_by_a_full_disk_does_not_spoil_the_next(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a write that stopped inside a line, the next one begins on a line of its own."""
    sink = StreamSink(to_json, pipe.stream)
    write = os.write
    written = 0

    def fill_the_disk(fd: int, data: memoryview) -> int:
        nonlocal written
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(fd, data[:10])
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fill_the_disk)
        with pytest.raises(OSError, match="No space"):
            sink.write([entry()])
    sink.write([entry(path="whole")])

    torn, whole = pipe.lines()
    assert len(torn) == 10
    assert json.loads(whole)["path"] == "whole"


def test_idle_log_thread_does_not_wake_up(start: Callable[..., LogWriter]) -> None:
    """An idle daemon costs nothing: the kernel counts no switch to the log thread."""
    writer = start()
    assert writer.flush(5)
    status = Path(f"/proc/self/task/{writer._thread.native_id}/status")

    def blocked_again() -> bool:
        return "S (sleeping)" in status.read_text() and writer._queue.empty()

    while not blocked_again():
        pass
    before = _switches(status)
    threading.Event().wait(0.2)  # the span under test, not a synchronisation

    assert _switches(status) == before


def _switches(status: Path) -> list[str]:
    return re.findall(r"ctxt_switches:\s+(\d+)", status.read_text())


def test_calls_after_close_are_counted_not_written(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """A late thread may still log; it must neither fail nor write to a closed file."""
    writer = start()
    assert writer.close(5)

    structlog.get_logger().info("late")

    assert writer.dropped == 1
    assert not writer.flush(0)
    assert pipe.lines() == []


def test_stream_without_descriptor_is_written_to(start: Callable[..., LogWriter]) -> None:
    """Test runners put an object without a file behind sys.stderr."""
    stream = io.StringIO()
    writer = start(stream=stream)

    structlog.get_logger().info("x")

    assert writer.flush(5)
    assert json.loads(stream.getvalue())["event"] == "x"


def test_exception_is_one_field_on_one_line(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """The traceback becomes text in the calling thread, and stays inside its line."""
    writer = start()

    try:
        raise ValueError("broken\nin two")
    except ValueError:
        structlog.get_logger().exception("file.failed", path="a")
    structlog.get_logger().info("x", exc_info=True)
    structlog.get_logger().info("y", exc_info=KeyError("k"))

    first, second, third = written(writer, pipe)
    assert first["level"] == "error"
    assert first["exception"].startswith("Traceback")
    assert "ValueError: broken\nin two" in first["exception"]
    assert second["exception"] == ""
    assert third["exception"] == "KeyError: 'k'"


def test_warnings_of_libraries_take_the_same_way(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """boto3 and urllib3 log through the standard library; from WARNING on it becomes `library.warning`."""
    writer = start()
    library = logging.getLogger("urllib3.connectionpool")

    library.info("not this")
    library.warning("retrying %s", "GET", exc_info=ValueError("the cause"))
    odd = ("urllib3", logging.ERROR, __file__, 1, "%s arguments do not %d match", ("these",), None)
    logs._bridge.handle(logging.LogRecord(*odd))

    warning, error = written(writer, pipe)
    assert warning["event"] == error["event"] == "library.warning"
    assert warning["logger"] == "urllib3.connectionpool"
    assert warning["message"] == "retrying GET"
    assert warning["exception"] == "ValueError: the cause"
    assert error["message"] == "%s arguments do not %d match"
    assert (warning["level"], error["level"]) == ("warning", "error")


def test_no_thread_dies_unseen(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """An exception that nobody caught is a line with thread and traceback; leaving on purpose is none."""
    writer = start()

    def dies(error: BaseException) -> None:
        raise error

    for name, error in (("upload-007", ValueError("the cause")), ("leaves", SystemExit(1))):
        thread = threading.Thread(target=dies, args=(error,), name=name)
        thread.start()
        thread.join()

    (line,) = written(writer, pipe)
    assert (line["event"], line["level"], line["thread"]) == ("thread.died", "error", "upload-007")
    assert line["error"] == "ValueError: the cause"
    assert line["exception"].startswith("Traceback")


def test_death_of_the_main_thread_is_logged_before_the_end() -> None:
    """The interpreter's own traceback would be many lines without a level."""
    program = (
        "import sys, warnings\n"
        "from s3spool.logs import log_thread as logs\n"
        "logs.configure('json', 'info')\n"
        "warnings.warn('old ways', UserWarning)\n"
        "raise RuntimeError('the cause')"
    )
    done = finished(sys.executable, "-c", program)

    warned, died = (json.loads(line) for line in done.stderr.splitlines())
    assert done.returncode == 1
    assert (warned["event"], warned["logger"]) == ("library.warning", "py.warnings")
    assert "old ways" in warned["message"]
    assert (died["event"], died["thread"], died["error"]) == ("thread.died", "MainThread", "RuntimeError: the cause")


def test_hooks_are_given_back(start: Callable[..., LogWriter]) -> None:
    before = sys.excepthook, threading.excepthook

    writer = start()
    changed = sys.excepthook, threading.excepthook
    writer.close()

    assert all(was is not hook for was, hook in zip(before, changed, strict=True))
    assert (sys.excepthook, threading.excepthook) == before


@pytest.mark.parametrize("missing", ["journald", "systemd-python"])
def test_what_is_missing_under_systemd_is_said_once(tmp_path: Path, missing: str) -> None:
    """`systemd.missing` has the true reason, and advises no installation where that is not what is missing."""
    home = Daemon(tmp_path, bucket="some-bucket", log={"format": "journal"})
    home.config_path.write_text(to_toml(home.config))
    program = (
        "import sys\nfrom pathlib import Path\nfrom s3spool.logs import journal\n"
        f"journal.SOCKET = Path({'/nonexistent' if missing == 'journald' else '/'!r})\n"
        "sys.modules['systemd'] = sys.modules['systemd.journal'] = None\n"
        f"sys.argv = ['s3spool', 'run', '--config', {str(home.config_path)!r}]\n"
        "from s3spool.__main__ import main\nmain()"
    )
    with home.log_path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", program], env=home.environment, stdout=log, stderr=log)
    try:
        eventually(lambda: "daemon.ready" in home.log_tail(), timeout_s=30)
    finally:
        process.terminate()
        process.wait(60)

    text = home.log_tail().replace("<4>", "")
    (said,) = (json.loads(line) for line in text.splitlines() if "systemd.missing" in line)
    assert ("no journald listens" if missing == "journald" else "systemd-python is not installed") in said["reason"]
    assert ("install" in said["reason"]) == (missing == "systemd-python")
    assert "hint" not in said


class Colour(Enum):
    RED = "red"


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("/a/b"), "/a/b"),
        (b"caf\xe9", "caf\\xe9"),
        (Colour.RED, "red"),
        (ValueError("bad"), "ValueError: bad"),
        (None, None),
        (2**80, 2**80),
        (float("nan"), None),
        ({Path("k"): {1}}, {"k": [1]}),
        (("a\udcff", 1.5, True), ["a\\xff", 1.5, True]),
        (Rude(), "<Rude without text: RuntimeError>"),
    ],
)
def test_values_become_json(value: object, expected: object) -> None:
    """Whatever is logged, the line is JSON and says what a person would expect."""
    assert json.loads(to_json(entry(value=value)))["value"] == expected


def test_structure_that_holds_itself_ends() -> None:
    """A cycle is cut, not followed."""
    loop: list[object] = []
    loop.append(loop)

    assert "[[[" in to_json(entry(value=loop))


def test_fields_cannot_replace_the_head_of_the_line() -> None:
    """A field named like the line's own keys is renamed; JSON with a key twice means two things."""
    line = json.loads(to_json(entry("x", timestamp=1, level="fake")))

    assert line["level"] == "info"
    assert (line["timestamp_"], line["level_"]) == (1, "fake")


def test_unhashable_event_is_survived(pipe: Pipe, start: Callable[..., LogWriter]) -> None:
    """Nonsense in a log call must not end the thread that writes everybody's lines."""
    writer = start()

    structlog.get_logger().info(["not", "a", "name"])
    structlog.get_logger().info("x")

    assert [line["event"] for line in written(writer, pipe)] == ["log.dropped", "x"]


@given(name=names, event=names)
def test_any_name_is_one_json_line(name: str, event: str) -> None:
    """However a reader splits lines, there is one; it parses, and valid names come back unchanged."""
    line = to_json(entry(event, path=name, nested={name: [name]}))

    assert line.splitlines() == [line]
    assert line.encode().decode().isprintable()
    path = json.loads(line)["path"]
    if not re.search("[\ud800-\udfff]", name) and masked(name) == name:
        assert path == name


@given(name=names, event=names)
def test_any_name_is_one_harmless_console_line(name: str, event: str) -> None:
    """Nothing that a terminal acts on is echoed, whether in the sentence or behind it."""
    for known in (event, "file.uploaded", "file.failed"):
        line = to_console(entry(known, path=name, error=name, other=name), colours=False)

        assert line.isprintable()
        line.encode()


@given(name=names, event=names)
def test_any_name_is_one_journal_entry(name: str, event: str) -> None:
    """MESSAGE is one printable line, names are legal, and every field is valid UTF-8."""
    for known in (event, "file.parked"):
        plain = entry(known, path=name, **{"odd name": name, "deep": [name]})
        fields = dict(field.decode().split("=", 1) for field in journal.fields("t", "info", plain.event, plain.fields))

        assert fields["MESSAGE"].isprintable()
        assert all(re.fullmatch("[A-Z][A-Z0-9_]{0,63}", field) for field in fields)
        assert json.loads(fields["S3SPOOL_DEEP"])


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("form", ["json", "console"])
def test_odd_names_come_through_a_pipe_as_one_line(
    pipe: Pipe, start: Callable[..., LogWriter], form: str, name: str
) -> None:
    """The same through the real thing, with a neighbour on either side."""
    writer = start(form)
    log = structlog.get_logger()

    log.info("before")
    log.info("file.uploaded", path=name, key=name, bucket="b")
    log.info("after")

    assert writer.flush(5)
    assert len(pipe.lines()) == 3


def test_names_that_are_not_utf_8_are_shown_with_their_bytes() -> None:
    r"""A lone surrogate is a byte the file system gave us, and `\xNN` is how it looks everywhere."""
    odd = entry(path="caf\udce9")

    assert json.loads(to_json(odd))["path"] == r"caf\xe9"
    assert r"caf\xe9" in to_console(odd, colours=False)
    assert rb"S3SPOOL_PATH=caf\xe9" in journal.fields("t", "info", odd.event, odd.fields)


@pytest.mark.parametrize(
    "text",
    [
        "PUT /b/k?X-Amz-Credential=HUSH&x=1",
        "https://b/k?X-Amz-Signature=HUSH",
        "https://b/k?AWSAccessKeyId=HUSH&Signature=HUSH&Expires=1",
        "X-Amz-Security-Token%3DHUSH",
        "x-amz-security-token: HUSH",
        "Authorization: AWS4-HMAC-SHA256 Credential=HUSH/20260101/eu/s3, Signature=HUSH",
        "{'Authorization': 'AWS4-HMAC-SHA256 Credential=HUSH, Signature=HUSH', 'host': 'h'}",
        "<Error><AWSAccessKeyId>HUSH</AWSAccessKeyId><SignatureProvided>HUSH</SignatureProvided></Error>",
        "aws_secret_access_key = HUSH",
        "AWS_SESSION_TOKEN=HUSH",
        "proxy http://me:HUSH@proxy:3128/ refused",
        "proxy http://me:HUSH/HUSH@proxy:3128/ refused",
        "proxy http://me:HUSH@HUSH@proxy:3128/ refused",
        '{"AccessKeyId": "AKIA", "Token": "HUSH", "Expiration": "2026"}',
        '{"Token":"HUSH\\/HUSH=="}',
        r'"{\"accessToken\": \"HUSH\"}"',
        "{'SessionToken': 'HUSH', 'Password': 'HUSH'}",
    ],
)
def test_secrets_in_text_are_masked(text: str) -> None:
    """Presigned URLs, headers, error bodies and proxies carry keys; log lines do not, in any format."""
    odd = entry("library.warning", message=text, exception=text)

    for line in (to_json(odd), to_console(odd, colours=False), str(journal.fields("t", "info", *odd[2:]))):
        assert "HUSH" not in line
        assert "***" in line


def test_secrets_in_fields_are_masked() -> None:
    """A field named like a secret says that it was there, not what it was, however deep it lies."""
    line = to_json(entry("x", secret_key="HUSH", headers={"X-Auth-Token": "HUSH"}, Password=b"HUSH"))  # noqa: S106 - the example

    assert "HUSH" not in line
    assert line.count("***") == 3


def test_ordinary_names_are_not_masked() -> None:
    """Masking needs a name and a value; a file about secrets keeps its name."""
    for name in (
        "secrets.txt",
        "session-token.md",
        "s3://bucket/signature",
        "a=b&c=d",
        "http://h:80/x",
        "token: 5",
        "me@h",
    ):
        assert masked(name) == name


def test_console_line_reads_like_a_sentence() -> None:
    """What the sentence says is not said again behind it, and what is empty is not said at all."""
    line = to_console(
        entry(
            path="a b.txt", bucket="b", key="k", bytes=16 * 1024**2, duration_s=0.25, attempt=2, etag="e", version_id=""
        ),
        colours=False,
    )

    assert re.fullmatch(r'\d\d:\d\d:\d\d file\.uploaded "a b\.txt" to s3://b/k, 16 MiB in 0\.25 s  attempt=2', line)


def test_colours_only_on_a_terminal_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` on a terminal is the console format; NO_COLOR is respected."""
    for no_color, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        leader, follower = pty.openpty()
        with os.fdopen(follower, "w") as terminal, os.fdopen(leader, "rb", buffering=0) as screen:
            writer = logs.configure("auto", "info", terminal)
            structlog.get_logger().warning("x", a=1)
            assert writer.close(5)

            assert writer.format == "console"
            assert (b"\x1b[33m" in screen.read(1000)) is coloured


@given(value=st.text())
def test_values_are_not_templates(value: str) -> None:
    """A file named like a placeholder is put into the sentence as it is."""
    sentence, _ = message("file.vanished", {"path": f"{{key}}[{value}]", "key": "SHOULD-NOT-APPEAR"})

    assert "SHOULD-NOT-APPEAR" not in sentence
    assert "{key}[" in sentence


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, ...]]:
    """systemd-python with a listening journald; the list holds what was sent."""
    sent: list[tuple[bytes, ...]] = []
    module = types.ModuleType("systemd.journal")
    module.sendv = lambda *fields: sent.append(fields)  # type: ignore[attr-defined]
    package = types.ModuleType("systemd")
    monkeypatch.setitem(sys.modules, "systemd", package)
    monkeypatch.setitem(sys.modules, "systemd.journal", module)
    monkeypatch.setattr(journal, "SOCKET", tmp_path)
    return sent


def test_journal_entry_has_native_fields(
    pipe: Pipe, start: Callable[..., LogWriter], journald: list[tuple[bytes, ...]]
) -> None:
    """PRIORITY, MESSAGE_ID and S3SPOOL_ fields are what alerts and `journalctl` queries are made of."""
    writer = start("journal")

    structlog.get_logger().error("file.parked", path="a\nPRIORITY=0", error_code="AccessDenied", attempt=2, x=None)

    assert writer.flush(5)
    assert (writer.format, writer.fallback) == ("journal", "")
    assert pipe.lines() == []
    (fields,) = journald
    assert b'MESSAGE=parked "a\\nPRIORITY=0": AccessDenied; it stays in the folder' in fields
    assert b"PRIORITY=3" in fields
    assert b"SYSLOG_IDENTIFIER=s3spool" in fields
    assert f"MESSAGE_ID={EVENTS['file.parked'].message_id}".encode() in fields
    assert b"S3SPOOL_EVENT=file.parked" in fields
    assert b"S3SPOOL_PATH=a\nPRIORITY=0" in fields
    assert b"S3SPOOL_ATTEMPT=2" in fields
    assert b"S3SPOOL_X=null" in fields


def test_unknown_event_is_its_own_journal_message() -> None:
    """An event without a sentence still says something."""
    assert b"MESSAGE=new.event" in journal.fields("t", "info", "new.event", {})


def test_auto_is_the_journal_where_stderr_is_its_stream(
    pipe: Pipe, start: Callable[..., LogWriter], journald: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd names device and inode of the stream it made; a redirected stderr is something else."""
    there = os.fstat(pipe.stream.fileno())

    monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
    assert start("auto").format == "journal"
    monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino + 1}")
    assert start("auto").format == "json"
    assert start("auto", stream=io.StringIO()).format == "json"


@pytest.mark.parametrize("missing", ["module", "journald"])
@pytest.mark.usefixtures("journald")
def test_without_systemd_python_the_priority_survives(
    pipe: Pipe, start: Callable[..., LogWriter], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """JSON lines with sd-daemon's `<N>`, and the writer says why; a silent journal would be worse."""
    if missing == "module":
        monkeypatch.setitem(sys.modules, "systemd.journal", None)
    else:
        monkeypatch.setattr(journal, "SOCKET", Path("/nonexistent"))
    writer = start("journal")

    structlog.get_logger().warning("systemd.missing", reason=writer.fallback)

    assert writer.flush(5)
    (line,) = pipe.lines()
    assert line.startswith("<4>{")
    assert json.loads(line[3:])["reason"] == writer.fallback != ""


def test_alert_ids_are_distinct_uuids() -> None:
    """Two events with one MESSAGE_ID could not be told apart by an alert."""
    ids = [spec.message_id for spec in EVENTS.values() if spec.message_id]

    assert len(set(ids)) == len(ids)
    assert all(UUID(hex=message_id).hex == message_id for message_id in ids)


def test_documentation_lists_every_event() -> None:
    """docs/logging.md and EVENTS name the same events, levels and MESSAGE_IDs."""
    text = (ROOT / "docs" / "logging.md").read_text()
    levels = dict(re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| (\w+) \|", text, re.MULTILINE))
    message_ids = dict(re.findall(r"^- `([a-z_]+\.[a-z_]+)` `([0-9a-f]{32})`$", text, re.MULTILINE))

    assert levels == {event: spec.level for event, spec in EVENTS.items()}
    assert message_ids == {event: spec.message_id for event, spec in EVENTS.items() if spec.message_id}


def test_documentation_lists_every_field() -> None:
    """A field that the source gives an event by name stands in that event's row of docs/logging.md."""
    text = (ROOT / "docs" / "logging.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| \w+ \| .* \| ([^|]*) \|$", text, re.MULTILINE)
    documented = {event: set(re.findall(r"[a-z0-9_]+", re.sub(r"\(.*?\)", "", fields))) for event, fields in rows}

    undocumented = {
        (call.args[0].value, keyword.arg)
        for path in (ROOT / "src").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and call.args[0].value in EVENTS
        for keyword in call.keywords
        if keyword.arg not in {None, "exc_info"} and keyword.arg not in documented[call.args[0].value]
    }

    assert undocumented == set()


def test_source_logs_only_listed_events() -> None:
    """An event that is not in EVENTS would be one that nobody can look up."""
    logged = {
        call.args[0].value
        for path in (ROOT / "src").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"debug", "info", "warning", "error", "exception"}
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }

    assert "daemon.ready" in logged
    assert logged <= set(EVENTS)
