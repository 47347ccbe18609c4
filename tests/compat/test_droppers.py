"""Programs that people drop files with, against a store that keeps every version that was sent.

Whatever a program does on the way, the last version is the whole file, and no version is anything that was not a whole
file: the content in the end, or one that stood there complete before.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.daemon import Daemon
from support.faulty import FaultyS3
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.s3_messages import Request

pytestmark = pytest.mark.compat

WAIT_S = 60.0
SLOW_KIB = 2048  # a second: most of what is sent takes seconds, and the scans and the settle time come in between
CONTENT = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(4 * 1024 * 1024 // 32))
OTHER = CONTENT[::-1]


class Recorder(FaultyS3):
    """Keeps each body that was taken, by its key."""

    def __init__(self) -> None:
        super().__init__()
        self._server.daemon_threads = True  # they outlive each test
        self.versions: dict[str, list[bytes]] = {}
        handle = self.store.handle

        def record(request: Request) -> object:
            answer = handle(request)
            if request.method == "PUT" and answer.status == 200 and "partNumber" not in request.query:
                self.versions.setdefault(request.key, []).append(request.body)
            return answer

        self.store.handle = record  # type: ignore[method-assign, assignment]


class Scene:
    """The daemon and the store, a directory of the test's own inside the folder, and a place to drop from."""

    def __init__(self, daemon: Daemon, recorder: Recorder, home: Path) -> None:
        self.daemon = daemon
        self.recorder = recorder
        self.home = home
        self.folder = daemon.folder / home.name
        self.source = home / "source"
        for directory in (self.folder, self.source):
            directory.mkdir()

    def versions(self) -> dict[str, list[bytes]]:
        """What was sent of this test's directory, by name."""
        prefix = f"{self.folder.name}/"
        versions = self.recorder.versions.copy()
        return {key.removeprefix(prefix): sent for key, sent in versions.items() if key.startswith(prefix)}

    def make(self, name: str = "file.bin", content: bytes = CONTENT) -> Path:
        path = self.source / name
        path.write_bytes(content)
        return path

    def run(self, *command: str | Path, **options: object) -> None:
        """Raises CalledProcessError."""
        subprocess.run([str(part) for part in command], check=True, timeout=WAIT_S, cwd=self.source, **options)  # type: ignore[call-overload]

    def expect(self, name: str, *whole: bytes) -> None:
        """The last of these is what S3 has in the end; no version was anything else."""
        eventually(lambda: self.versions().get(name, [b""])[-1] == whole[-1], timeout_s=WAIT_S, message=name)
        torn = [len(body) for body in self.versions()[name] if body not in whole]
        assert torn == [], "versions that were never a whole file, by their size"
        for event in ("file.failed", "file.parked", "library.warning"):
            assert not self.daemon.events(event)

    def expect_only(self, *names: str) -> None:
        assert set(self.versions()) == set(names)


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def daemon(recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(
        tmp_path_factory.mktemp("daemon"),
        bucket=recorder.bucket,
        environment=recorder.environment(),
        watch={"settle_s": 1, "rescan_s": 1},
    )
    with daemon:
        daemon.wait_ready(WAIT_S)
        yield daemon
        assert daemon.stop() == 0


@pytest.fixture
def scene(daemon: Daemon, recorder: Recorder, tmp_path: Path) -> Scene:
    return Scene(daemon, recorder, tmp_path)


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def server(*command: str | Path, port: int) -> Iterator[None]:
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as it:
        try:
            eventually(lambda: listens(port), message=f"{command[0]} listens")
            yield
        finally:
            it.terminate()


# rsync


def test_rsync(scene: Scene) -> None:
    """A hidden name while it writes, then a rename."""
    needs("rsync")
    scene.make()

    scene.run("rsync", "-a", f"--bwlimit={SLOW_KIB}", "file.bin", f"{scene.folder}/")

    scene.expect("file.bin", CONTENT)
    scene.expect_only("file.bin")
    assert len(scene.versions()["file.bin"]) == 1


def test_rsync_of_a_tree(scene: Scene) -> None:
    """Directories first, files in them by and by."""
    needs("rsync")
    (scene.source / "a/b").mkdir(parents=True)
    for number in range(30):
        scene.make(f"a/b/{number}", b"%d" % number * 1000)

    scene.run("rsync", "-a", "a", f"{scene.folder}/")

    for number in range(30):
        scene.expect(f"a/b/{number}", b"%d" % number * 1000)
    scene.expect_only(*(f"a/b/{number}" for number in range(30)))


def test_rsync_in_place(scene: Scene) -> None:
    """It writes under the final name, with mode 0600 until it is done, and over the old content the second time."""
    needs("rsync")
    scene.make()
    scene.run("rsync", "-a", "--inplace", f"--bwlimit={SLOW_KIB}", "file.bin", f"{scene.folder}/")
    scene.expect("file.bin", CONTENT)

    scene.make(content=OTHER)
    scene.run("rsync", "-a", "--inplace", "-I", f"--bwlimit={SLOW_KIB}", "file.bin", f"{scene.folder}/")

    scene.expect("file.bin", CONTENT, OTHER)


def test_rsync_that_is_killed_and_resumed(scene: Scene) -> None:
    """With --partial-dir what is there of it stays under a hidden name."""
    needs("rsync")
    scene.make()
    command = ("rsync", "-a", "--partial-dir=.rsync-partial", "file.bin", f"{scene.folder}/")
    with subprocess.Popen([*command, "--bwlimit=512"], cwd=scene.source) as rsync:
        eventually(lambda: [path for path in scene.folder.glob(".file.bin.*") if path.stat().st_size > 100_000])
        rsync.terminate()
    eventually((scene.folder / ".rsync-partial/file.bin").exists)

    scene.run(*command)

    scene.expect("file.bin", CONTENT)
    scene.expect_only("file.bin")


# ssh


@pytest.fixture
def ssh(scene: Scene) -> Iterator[list[str]]:
    """A server of its own on loopback; the options for its clients."""
    needs("/usr/sbin/sshd", "ssh-keygen")
    here = scene.home
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", here / name], check=True)
    (here / "authorized").write_text((here / "user.pub").read_text())
    port = free_port()
    (here / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host\nAuthorizedKeysFile {here}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with server("/usr/sbin/sshd", "-D", "-f", here / "sshd_config", port=port):
        yield [
            f"-P{port}",
            f"-i{here}/user",
            "-oStrictHostKeyChecking=no",
            f"-oUserKnownHostsFile={os.devnull}",
            "-q",
            f"-l{SLOW_KIB * 8}",
        ]


@pytest.mark.parametrize("old", [True, False], ids=["scp's own protocol", "sftp"])
def test_scp(scene: Scene, ssh: list[str], old: bool) -> None:
    """It writes under the final name."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    scene.make()
    scene.run("scp", *(["-O"] if old else []), *ssh, "file.bin", f"{user}@127.0.0.1:{scene.folder}/")
    scene.expect("file.bin", CONTENT)

    scene.make(content=OTHER)
    scene.run("scp", *(["-O"] if old else []), *ssh, "file.bin", f"{user}@127.0.0.1:{scene.folder}/")

    scene.expect("file.bin", CONTENT, OTHER)


def test_sftp(scene: Scene, ssh: list[str]) -> None:
    """The same, and a rename on the server, which is what to do where a transfer may break off."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    scene.make()
    batch = f"put file.bin {scene.folder}/direct.bin\nput file.bin {scene.folder}/file.bin.part\n"
    batch += f"rename {scene.folder}/file.bin.part {scene.folder}/file.bin\n"

    scene.run("sftp", *ssh, "-b", "-", f"{user}@127.0.0.1", input=batch.encode())

    scene.expect("direct.bin", CONTENT)
    scene.expect("file.bin", CONTENT)
    scene.expect_only("direct.bin", "file.bin")


# HTTP and FTP


@pytest.fixture
def web(scene: Scene) -> Iterator[str]:
    class SettleReason(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SettleReason, directory=str(scene.source))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "download",
    [
        ["curl", "-s", "--limit-rate", f"{SLOW_KIB}k", "-O", "--output-dir", "{folder}", "{url}"],
        ["wget", "-q", f"--limit-rate={SLOW_KIB}k", "-P", "{folder}", "{url}"],
    ],
    ids=lambda command: command[0],
)
def test_a_download(download: list[str], scene: Scene, web: str) -> None:
    """Both write under the final name, and pause where the line does: the open file is not taken."""
    needs(download[0])
    scene.make()

    scene.run(*(part.format(folder=scene.folder, url=f"{web}file.bin") for part in download))

    scene.expect("file.bin", CONTENT)
    assert len(scene.versions()["file.bin"]) == 1


def test_vsftpd(scene: Scene) -> None:
    """It writes under the final name."""
    needs("vsftpd", "curl")
    if os.geteuid() != 0:
        pytest.skip("vsftpd takes logins as root only")
    port = free_port()
    incoming = scene.folder / "incoming"
    incoming.mkdir()
    for place in (incoming, *scene.folder.parents, *scene.home.parents):
        if place.stat().st_uid == os.geteuid() and place != Path("/"):
            place.chmod(0o777 if place == incoming else place.stat().st_mode | 0o111)
    for place in (scene.folder, scene.home):
        place.chmod(0o755)
    settings = {
        "listen": "YES",
        "listen_address": "127.0.0.1",
        "listen_port": str(port),
        "background": "NO",
        "anonymous_enable": "YES",
        "anon_root": str(scene.folder),
        "anon_upload_enable": "YES",
        "anon_umask": "022",
        "write_enable": "YES",
        "ftp_username": "ftp",
        "chown_uploads": "NO",
        "seccomp_sandbox": "NO",
        "secure_chroot_dir": str(scene.source),
    }
    configuration = scene.home / "vsftpd.conf"
    configuration.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    scene.make()
    with server("vsftpd", configuration, port=port):
        scene.run(
            *("curl", "-s", "--limit-rate", f"{SLOW_KIB}k", "-T", "file.bin"),
            f"ftp://127.0.0.1:{port}/incoming/",
        )

    scene.expect("incoming/file.bin", CONTENT)
    scene.expect_only("incoming/file.bin")


# Programs that work in the folder


def test_vim(scene: Scene) -> None:
    """Swap files, a backup and the name 4913 come and go."""
    needs("vim")
    for text in ("one", "two", "three"):
        scene.run(
            *("vim", "-N", "-u", "NONE", "-i", "NONE", "-es", "--cmd", "set backup writebackup swapfile"),
            *("-c", f"normal ggdGi{text}", "-c", "wq", scene.folder / "text.txt"),
            stdin=subprocess.DEVNULL,
        )

    scene.expect("text.txt", b"one\n", b"two\n", b"three\n")
    scene.expect_only("text.txt")


def test_sqlite(scene: Scene) -> None:
    """The journal beside a database is not sent; the database is, when nobody has it open."""
    path = scene.folder / "data.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE t (n INTEGER)")
    for number in range(50):
        connection.execute("BEGIN")
        connection.execute("INSERT INTO t VALUES (?)", (number,))
        connection.execute("COMMIT")
    connection.close()

    scene.expect("data.db", path.read_bytes())
    scene.expect_only("data.db")


def copies(scene: Scene) -> dict[str, Callable[[], None]]:
    return {
        "cp": lambda: scene.run("cp", "-p", "file.bin", scene.folder / "cp"),
        "mv": lambda: scene.run("mv", scene.make("moved"), scene.folder / "mv"),
        "dd": lambda: scene.run("dd", "if=file.bin", f"of={scene.folder}/dd", "bs=4k", "status=none"),
        "install": lambda: scene.run("install", "-m", "600", "file.bin", scene.folder / "install"),
        "tar": lambda: scene.run("tar", "-xf", "tar.tar", "-C", scene.folder),
    }


def test_coreutils(scene: Scene) -> None:
    """Copies, moves, archives taken apart."""
    scene.make()
    scene.make("tar")
    scene.run("tar", "-cf", "tar.tar", "tar")
    for copy in copies(scene).values():
        copy()

    for name in copies(scene):
        scene.expect(name, CONTENT)
    scene.expect_only(*copies(scene))
