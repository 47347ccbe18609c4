"""The table: each row makes one kind of trouble, and says how fast a good file has to be all the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from contention.faults import AdmitConnections, SlowLine
from contention.stage import Stage
from support.faults import Delay, Reset, Status, Truncated
from support.slow_files import SlowFiles
from support.waiting import eventually

PROMPT_S = 5.0
RARELY = {"rescan_s": 3600}
MIB = 2**20
QUEUE_SIZE = 10_000  # the default
WRITER = """
import itertools, os, pathlib, sys, time
place, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for number in itertools.count():
    {act}
"""


@dataclass(frozen=True)
class Scenario:
    """`make` prepares the trouble and starts the daemon."""

    name: str
    size: int
    make: Callable[[Stage], None]
    limit_s: float = PROMPT_S
    quick: bool = False  #: also in `make test`, at a fraction of the size
    least: int = 1  #: below this size it is no trouble
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def unreadable(stage: Stage) -> None:
    stage.without_privileges()
    stage.fill(mode=0)
    stage.start()
    begun = time.monotonic()

    def too_many() -> str:
        minutes = 1 + (time.monotonic() - begun) / 60
        lines = len(stage.daemon.events("file.failed"))
        return f"{lines} lines of log" if lines > 150 * minutes else ""

    stage.check = too_many


def held_open(stage: Stage) -> None:
    stage.fill()
    act = (
        "files = [open(place / f'{n:06}', 'a') for n in range(count)]; print(len(files), flush=True); "
        "sys.stdin.read(); sys.exit()"
    )
    raised = ("sh", "-c", 'ulimit -n $(ulimit -Hn); exec "$@"', "sh")
    hold = subprocess.Popen(
        [*raised, sys.executable, "-c", WRITER.format(act=act), str(stage.daemon.folder / "crowd"), str(stage.size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stage.on_exit.callback(hold.communicate)
    assert hold.stdout is not None
    hold.stdout.readline()
    stage.start()


def written_again(stage: Stage, act: str) -> None:
    place = stage.daemon.folder / "crowd"
    place.mkdir()
    stage.run(sys.executable, "-c", WRITER.format(act=act), place, stage.size)
    stage.start()


def rewritten(stage: Stage) -> None:
    written_again(stage, "(place / str(number % count)).write_text(str(number))")


def created_and_removed(stage: Stage) -> None:
    written_again(stage, "p = place / str(number); p.write_text('x'); p.unlink()")


def renamed_directory(stage: Stage) -> None:
    stage.fill("crowd-0")
    (stage.daemon.folder / "crowd").mkdir()
    act = "os.rename(f'{place}-{number % 2}', f'{place}-{(number + 1) % 2}')"
    stage.run(sys.executable, "-c", WRITER.format(act=act), stage.daemon.folder / "crowd", stage.size)
    stage.start()


def appended(stage: Stage) -> None:
    act = "files = globals().setdefault('files', [open(place / str(n), 'a') for n in range(count)]); "
    written_again(stage, act + "f = files[number % count]; f.write('x'); f.flush()")


def new_directories(stage: Stage) -> None:
    written_again(
        stage,
        "p = place / str(number % 100) / str(number); p.mkdir(parents=True); (p / 'f').write_text('x'); "
        "time.sleep(1 / count)",
    )


def waiting(stage: Stage) -> None:
    """Found by the first scan; the server takes its time."""
    stage.server.script(Delay(0.5), times=None, match="^PUT crowd")
    stage.fill()
    stage.start()
    # What this scan finds in the root, which it lists first, is one of those that wait. Its end comes late for a larger
    # crowd: when the last file has room.
    stage.daemon.wait_event("scan.finished" if stage.size < QUEUE_SIZE else "file.uploaded")


def flat(stage: Stage) -> None:
    stage.fill()
    stage.start()


def hard_links(stage: Stage) -> None:
    place = stage.daemon.folder / "crowd"
    place.mkdir()
    (place / "first").write_bytes(b"content")
    for number in range(stage.size):
        os.link(place / "first", place / str(number))
    stage.start()


def fifos(stage: Stage) -> None:
    place = stage.daemon.folder / "crowd"
    place.mkdir()
    for number in range(stage.size):
        os.mkfifo(place / str(number))
    stage.start()


def from_the_future(stage: Stage) -> None:
    stage.fill()
    later = time.time() + 86_400
    for path in (stage.daemon.folder / "crowd").iterdir():
        os.utime(path, (later, later))
    stage.start()


def blamed(stage: Stage) -> str:
    """Good files that failed or were parked."""
    failures = [*stage.daemon.events("file.failed"), *stage.daemon.events("file.parked")]
    good = sorted({line["path"] for line in failures if not line["path"].startswith("crowd")})
    return f"{good} are blamed" if good else ""


def failing_each(stage: Stage) -> None:
    stage.server.script(Status(code=409, error_code="OperationAborted"), times=None, match="^PUT crowd")
    stage.fill()
    stage.start()
    stage.check = lambda: blamed(stage)


def due_at_once(stage: Stage) -> None:
    """None could be read at first; then all can be, and are released together."""
    stage.without_privileges()
    stage.fill(mode=0)
    stage.start()
    eventually(
        lambda: json.loads(stage.daemon.cli("status", "--json").stdout)["files"]["waiting"] >= stage.size,
        timeout_s=120,
    )
    for path in (stage.daemon.folder / "crowd").iterdir():
        path.chmod(0o644)
    threading.Thread(target=stage.daemon.cli, args=("retry", "--all"), daemon=True).start()


def refused_prefix(stage: Stage) -> None:
    stage.server.script(Status(code=403, error_code="AccessDenied"), times=None, match="^PUT crowd")
    stage.fill()
    stage.start()


def slow_down(stage: Stage) -> None:
    turns = iter(range(10**9))
    stage.server.script(Status(code=503, error_code="SlowDown"), times=None, match=lambda _: next(turns) % 2 == 0)
    stage.fill()
    stage.start()


def few_connections(stage: Stage) -> None:
    stage.server.script(AdmitConnections(stage.server.port, stage.size), times=None)
    for number in range(20):
        stage.daemon.drop(f"crowd {number}")
    stage.start()


def few_descriptors(stage: Stage) -> None:
    stage.daemon.program = ("prlimit", f"--nofile={stage.size}", *stage.daemon.program)
    for number in range(200):
        stage.daemon.drop(f"crowd {number}", bytes(200_000))
    stage.start()


def inotify_limit(stage: Stage, what: str) -> None:
    confined = ("unshare", "--user", "--map-root-user", "sh", "-c")
    set_limit = f"echo {stage.size - 1} > /proc/sys/user/max_inotify_{what}"
    stage.daemon.program = (*confined, f'{set_limit} && exec "$@"', "sh", *stage.daemon.program)
    for number in range(200):
        stage.daemon.drop(f"crowd {number}/a")
    stage.start()


def few_watches(stage: Stage) -> None:
    inotify_limit(stage, "watches")


def no_inotify(stage: Stage) -> None:
    inotify_limit(stage, "instances")


def mounted(stage: Stage) -> SlowFiles:
    return stage.on_exit.enter_context(SlowFiles(stage.daemon.folder / "mount", stage.home / "fuse"))


def hanging_open(stage: Stage) -> None:
    slow = mounted(stage)
    slow.hold("open", ".held", seconds=45)
    for number in range(stage.size):
        (slow.backing / f"{number}.held").write_text("late")
    stage.start()


def slow_opens(stage: Stage) -> None:
    slow = mounted(stage)
    slow.hold("open", ".late", seconds=0.3)
    for number in range(stage.size):
        (slow.backing / f"{number}.late").write_text("late")
    stage.start()


def hanging_directory(stage: Stage) -> None:
    slow = mounted(stage)
    slow.hold("readdir", seconds=40)
    stage.start()

    def make(number: int) -> None:
        with contextlib.suppress(OSError):  # the mount goes while it waits
            (slow.place / f"new {number}").mkdir()

    for number in range(stage.size):
        threading.Thread(target=make, args=(number,), daemon=True).start()


def medium_bodies(stage: Stage) -> None:
    stage.server.script(SlowLine(200 * 1024), times=None, match="^PUT crowd")
    stage.fill(content=bytes(8 * MIB))
    stage.start()


def medium_bodies_limited(stage: Stage) -> None:
    stage.fill(content=bytes(MIB))
    stage.start()


def large_bodies(stage: Stage) -> None:
    stage.server.script(SlowLine(MIB), times=None, match="^PUT crowd")
    stage.fill(content=bytes(60 * MIB))
    stage.start()


def dead_name(stage: Stage) -> None:
    """The good files are dropped once the name lives again."""
    hosts = stage.home / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.0.2 faulty.test\n")
    mounts = f"mount --bind {hosts} /etc/hosts"
    stage.daemon.program = ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *stage.daemon.program)
    stage.daemon.environment["AWS_ENDPOINT_URL_S3"] = f"http://faulty.test:{stage.server.port}"
    for number in range(stage.size):
        stage.daemon.drop(f"crowd {number}")
    stage.start()
    stage.daemon.wait_event("destination.paused", 60)
    hosts.write_text("127.0.0.1 localhost faulty.test\n")


def more_than_the_queue(stage: Stage) -> None:
    held_open(stage)
    begun = time.monotonic()

    def scans() -> str:
        count = len(stage.daemon.events("scan.finished"))
        return f"{count} scans" if count > 5 + (time.monotonic() - begun) / 2 else ""

    stage.check = scans


def list_readers(stage: Stage) -> None:
    unreadable(stage)
    stage.check = lambda: ""
    for _ in range(9):
        connection = stage.on_exit.enter_context(socket.socket(socket.AF_UNIX))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(str(stage.daemon.socket_path))
        connection.sendall(b'{"command": "list"}\n')

    def status() -> str:
        begun = time.monotonic()
        answer = stage.daemon.cli("status", timeout_s=120)
        took_s = time.monotonic() - begun
        return "" if took_s < PROMPT_S and answer.returncode == 0 else f"status took {took_s:.1f} s"

    stage.check = status


def status_storm(stage: Stage) -> None:
    stage.start()
    act = f"""import socket
    for n in range(count):
        s = socket.socket(socket.AF_UNIX); s.connect({str(stage.daemon.socket_path)!r})
        s.sendall(b'{{"command": "status"}}' + bytes([10])); s.recv(65536); s.close()"""
    stage.run(sys.executable, "-c", WRITER.format(act=act), stage.home, stage.size)


def ledger_locked(stage: Stage) -> None:
    """By another program, for seconds again and again."""
    stage.start()
    act = """import sqlite3, time
    db = sqlite3.connect(place, timeout=60, isolation_level=None)
    db.execute('BEGIN IMMEDIATE'); time.sleep(count / 10); db.execute('ROLLBACK'); db.close(); time.sleep(0.3)"""
    eventually(lambda: list(stage.daemon.state_directory.glob("ledger.sqlite3")))
    stage.run(sys.executable, "-c", WRITER.format(act=act), stage.daemon.state_directory / "ledger.sqlite3", stage.size)


def log_unread(stage: Stage) -> None:
    pipe = stage.home / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    stage.on_exit.callback(os.close, reader)
    stage.daemon.program = ("sh", "-c", f'exec "$@" >{pipe} 2>&1', "sh", *stage.daemon.program)
    stage.fill()
    stage.start()


def signal_storm(stage: Stage) -> None:
    stage.start()
    stage.daemon.wait_ready()

    def send() -> None:
        for _ in range(stage.size):
            stage.daemon.signal(signal.SIGHUP)

    stage.meanwhile = send


def rescan_storm(stage: Stage) -> None:
    flat(stage)
    cli = [*stage.daemon.program[:3], "rescan", "--config", stage.daemon.config_path]
    for _ in range(4):
        stage.run("sh", "-c", 'while true; do "$@" >/dev/null 2>&1; done', "sh", *cli)


def stopped(stage: Stage) -> None:
    """For two seconds, again and again, as a debugger or a starved machine does it."""
    stage.start()
    script = f"while kill -STOP {stage.daemon.pid}; do sleep 2; kill -CONT {stage.daemon.pid}; sleep 1; done"
    stage.run("sh", "-c", script)


def busy_machine(stage: Stage) -> None:
    for _ in range(stage.size):
        stage.run(sys.executable, "-c", "while True: pass")
    stage.start()


def removed_too_slowly(stage: Stage) -> None:
    stage.fill()
    stage.start()


def silent_requests(stage: Stage) -> None:
    """Some answers never come, and hold their workers."""
    stage.server.script(Delay(3600), times=None, match="^PUT crowd")
    stage.fill()
    stage.start()


def symbolic_links(stage: Stage) -> None:
    place = stage.daemon.folder / "crowd"
    place.mkdir()
    (stage.home / "outside").write_text("not in the folder")
    for number in range(stage.size):
        (place / str(number)).symlink_to(stage.home / "outside")
    stage.start()


def sockets(stage: Stage) -> None:
    place = stage.daemon.folder / "crowd"
    place.mkdir()
    for number in range(stage.size):
        os.mknod(place / str(number), stat.S_IFSOCK | 0o600)
    stage.start()


def long_names(stage: Stage) -> None:
    """Each byte becomes three in the key."""
    place = stage.daemon.folder / "crowd"
    place.mkdir()
    for number in range(stage.size):
        (place / f"{number:06}".ljust(255, "\x01")).touch()
    stage.start()


def one_directory_each(stage: Stage) -> None:
    place = stage.daemon.folder / "crowd"
    for number in range(stage.size):
        (place / str(number)).mkdir(parents=True)
        (place / str(number) / "file").touch()
    stage.start()


def refused_for_good(stage: Stage) -> None:
    stage.server.script(Status(code=400, error_code="InvalidRequest"), times=None, match="^PUT crowd")
    stage.fill()
    stage.start()
    stage.check = lambda: blamed(stage)


def answers_after_5_s(stage: Stage) -> None:
    # Every worker waits for such an answer: a new file is sent when the first of them comes.
    stage.server.script(Delay(5), times=None, match="^PUT crowd")
    stage.fill()
    stage.start()
    stage.daemon.wait_event("scan.finished")  # what this scan finds is one of those that wait


def every_third_reset(stage: Stage) -> None:
    turns = iter(range(10**9))
    stage.server.script(Reset("before"), times=None, match=lambda _: next(turns) % 3 == 0)
    stage.fill()
    stage.start()


def answers_cut_short(stage: Stage) -> None:
    stage.server.script(Truncated(), times=None, match="^PUT crowd")
    stage.fill()
    stage.start()


def sparse_file(stage: Stage) -> None:
    """Nearly 10,000 parts that cost their owner nothing."""
    stage.server.script(SlowLine(MIB), times=None, match="^PUT crowd")
    place = stage.daemon.folder / "crowd"
    place.mkdir()
    for number in range(stage.size):
        with (place / str(number)).open("wb") as file:
            file.truncate(2**40)
    stage.start()


def changed_modes(stage: Stage) -> None:
    """Of files that are uploaded and kept: each is compared by its checksum."""
    stage.fill(content=b"content")
    stage.start()
    stage.daemon.wait_uploaded(stage.size, 120)
    act = "os.chmod(place / f'{number % count:06}', 0o600 + number // count % 2 * 0o44)"
    stage.run(sys.executable, "-c", WRITER.format(act=act), stage.daemon.folder / "crowd", stage.size)


def command_storm(stage: Stage, *command: str) -> None:
    failing_each(stage)
    cli = [*stage.daemon.program[:3], *command[:1], "--config", stage.daemon.config_path, *command[1:]]
    for _ in range(4):
        stage.run("sh", "-c", 'while true; do "$@" >/dev/null 2>&1; done', "sh", *cli)


def retry_storm(stage: Stage) -> None:
    command_storm(stage, "retry", "--all")


def why_storm(stage: Stage) -> None:
    command_storm(stage, "why", "crowd/000000")


KEEP, DELETE = {"after": {"action": "keep"}}, {"after": {"action": "delete"}}

SCENARIOS = [
    Scenario("unreadable files", 20_000, unreadable, quick=True, least=2000, sections={"watch": RARELY}),
    Scenario("files held open for writing", 15_000, held_open, quick=True),
    Scenario(
        "more names being written than queue_size",
        15_000,
        more_than_the_queue,
        sections={"upload": {"queue_size": 100}},
    ),
    Scenario("files rewritten all the time", 2000, rewritten, quick=True),
    Scenario("files created and removed all the time", 1, created_and_removed, quick=True),
    Scenario("files appended to all the time", 500, appended),
    Scenario("a directory renamed all the time", 1000, renamed_directory, quick=True, least=1000),
    Scenario("new directories a second, each with a file", 1000, new_directories),
    Scenario("files waiting at start, 200 a second", 30_000, waiting, quick=True, least=3000),
    Scenario("files in one flat directory", 300_000, flat, least=10_000),
    Scenario("files removed after upload", 20_000, removed_too_slowly, sections=DELETE),
    Scenario("hard links of one file", 10_000, hard_links),
    Scenario("FIFOs", 10_000, fifos),
    Scenario("files from the future", 5000, from_the_future),
    Scenario(
        "files that fail each time", 5000, failing_each, quick=True, sections={"retry": {"initial_s": 1, "max_s": 5}}
    ),
    Scenario("retries due at once", 20_000, due_at_once, sections={"retry": {"initial_s": 3600, "max_s": 3600}}),
    Scenario("files refused for their prefix", 2000, refused_prefix, limit_s=15.0, quick=True),
    Scenario("every other request: 503 SlowDown", 2000, slow_down),
    Scenario("connections that the server admits", 3, few_connections, limit_s=15.0, quick=True, least=3),
    Scenario("descriptors (ulimit -n)", 100, few_descriptors, limit_s=15.0, least=100),
    Scenario("inotify watches", 4, few_watches, least=4),
    Scenario("no inotify instance", 1, no_inotify),
    Scenario("files of a mount whose open takes 45 s", 20, hanging_open, quick=True, least=20),
    Scenario("files of a mount whose open takes 0.3 s", 200, slow_opens),
    Scenario("directories made on a mount that hangs", 10, hanging_directory, quick=True, least=2),
    Scenario("bodies of 8 MB at 200 KiB/s each", 200, medium_bodies),
    Scenario(
        "bodies of 1 MB under max_bandwidth",
        300,
        medium_bodies_limited,
        sections={"upload": {"max_bandwidth": "2MiB/s"}},
    ),
    Scenario("bodies of 60 MB at 1 MiB/s a connection", 20, large_bodies),
    Scenario("the name of the endpoint was dead", 20, dead_name, limit_s=10.0),
    Scenario("answers that never come", 20, silent_requests, quick=True, least=20),
    Scenario("slow readers of `list`", 20_000, list_readers, least=2000),
    Scenario("`status` all the time", 1, status_storm),
    Scenario("`rescan` all the time", 10_000, rescan_storm),
    Scenario("SIGHUP all the time", 5, signal_storm),
    Scenario("the ledger locked, tenths of a second", 20, ledger_locked, least=20),
    Scenario("the log unread", 20_000, log_unread, least=2000),
    Scenario("the process stopped for 2 s again and again", 1, stopped),
    Scenario("busy processes beside it", 8, busy_machine, least=8),
    Scenario("symbolic links", 10_000, symbolic_links),
    Scenario("sockets", 10_000, sockets),
    Scenario("names of 255 odd bytes", 10_000, long_names),
    Scenario("directories of one file", 10_000, one_directory_each),
    Scenario("files refused for good", 5000, refused_for_good, limit_s=12.0, quick=True),
    Scenario("answers that take 5 s", 2000, answers_after_5_s, limit_s=10.0),
    Scenario("every third request reset", 2000, every_third_reset, limit_s=12.0),
    Scenario("answers cut short", 2000, answers_cut_short, limit_s=12.0),
    Scenario("sparse files of 1 TiB", 3, sparse_file),
    Scenario("modes of uploaded files changed all the time", 2000, changed_modes, sections=KEEP),
    Scenario("`retry --all` all the time", 1000, retry_storm, limit_s=12.0),
    Scenario("`why` all the time", 1000, why_storm),
]
