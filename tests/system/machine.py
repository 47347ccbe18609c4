"""A booted Debian in a container: its systemd and journald are real, its network is the host's."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.waiting import eventually

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

# In a mount namespace of its own: the layer is gone with the container, however that ends.
_BOOT = """
set -e
mount -t tmpfs -o size=4g,mode=755 s3spool-test "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" s3spool-test "$2/root"
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --directory="$2/root" --boot --machine=s3spool-test \
    --register=no --keep-unit --console=read-only --resolv-conf=replace-host
"""
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

Entry = dict[str, Any]
Ended = subprocess.CompletedProcess[str]


class Machine:
    """Boots on `start`; what is changed in it is gone at `stop`, the folder it booted from is untouched."""

    def __init__(self, rootfs: Path, home: Path) -> None:
        """`home` is an empty folder on the host for the layer and the console's log."""
        self._rootfs = rootfs
        self._layer = home / "layer"
        self._console = home / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def start(self, timeout_s: float = 120.0) -> Self:
        self._layer.mkdir(parents=True)
        boot = ["sh", "-c", _BOOT, "sh", str(self._rootfs), str(self._layer)]
        with self._console.open("wb") as console:
            # pdeathsig: no machine outlives the tests, however they end.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", *boot],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self._init = eventually(self._find_init, timeout_s=timeout_s, message="the container's init")
        states = ("running", "degraded")
        eventually(
            lambda: self.run("systemctl is-system-running", check=False).stdout.strip() in states,
            timeout_s=timeout_s,
            message=f"the machine has booted; see {self._console}",
        )
        return self

    def stop(self) -> None:
        """Pulls the plug."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def path(self, inside: str) -> Path:
        """A file of the machine as the host reaches it."""
        return Path(f"/proc/{self._init}/root") / inside.lstrip("/")

    def write(self, inside: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """As root; the directories above are made."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=mode)
        path.chmod(mode)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def run(
        self,
        command: str,
        *,
        user: str = "root",
        check: bool = True,
        stdin: str = "",
        cwd: str = "/",
        timeout_s: float = 120.0,
    ) -> Ended:
        """A line for sh; what it says is in the error where it fails and `check` is true."""
        done = subprocess.run(
            [*self._enter(user, cwd), "sh", "-c", command],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=self._environment(user),
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def spawn(self, command: str, *, user: str = "root") -> subprocess.Popen[str]:
        """The same in the background; the caller ends it and reads its standard output."""
        return subprocess.Popen(
            [*self._enter(user), "sh", "-c", f"exec {command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment(user),
        )

    def out(self, command: str, *, user: str = "root", timeout_s: float = 120.0) -> str:
        """What the command prints."""
        return self.run(command, user=user, timeout_s=timeout_s).stdout.strip()

    def wait_for(self, command: str, *, timeout_s: float = 60.0) -> str:
        """Until the command succeeds; what it prints."""
        last: list[Ended] = []

        def succeeded() -> bool:
            last[:] = [self.run(command, check=False)]
            return last[0].returncode == 0

        try:
            eventually(succeeded, timeout_s=timeout_s, message=command)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{last[0].stdout}{last[0].stderr}") from None
        return last[0].stdout.strip()

    def mark(self) -> float:
        """This moment, for `journal(after=...)`; what was logged before is before it."""
        self.run("journalctl --sync")
        return time.time()

    def journal(self, *matches: str, after: float = 0.0, unit: str = "s3spool") -> list[Entry]:
        """Entries of a unit, oldest first: `journal("S3SPOOL_EVENT=file.uploaded", after=mark)`."""
        self.run("journalctl --sync")
        # Not --after-cursor: with matches it leaves out the first entry behind the cursor.
        since = f"--since=@{after:.6f}" if after else ""
        wanted = " ".join(shlex.quote(match) for match in matches)
        lines = self.run(f"journalctl -u {unit} -o json --all -q {since} {wanted}", check=False).stdout
        return [json.loads(line) for line in lines.splitlines()]

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.out(f"systemctl show {shlex.quote(unit)} -p {','.join(names)}")
        return dict(line.split("=", 1) for line in text.splitlines())

    def _enter(self, user: str, cwd: str = "/") -> list[str]:
        inside = [
            "nsenter",
            "-t",
            str(self._init),
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--net",
            "--root",
            f"--wdns={cwd}",
        ]
        who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        return [*inside, "--", *(who if user != "root" else [])]

    @staticmethod
    def _environment(user: str) -> dict[str, str]:
        home = "/root" if user == "root" else f"/home/{user}"
        return _ENVIRONMENT | {"HOME": home} | {name: os.environ[name] for name in _PROXIES if name in os.environ}

    def _find_init(self) -> int:
        """The child of systemd-nspawn that runs systemd."""
        assert self._process is not None
        assert self._process.poll() is None, f"systemd-nspawn ended:\n{self._console.read_text(errors='replace')}"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in children:
            with suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return 0
