"""Records a terminal session and writes it as an animated SVG: `recording.py docs/recording.svg`.

All lines but the comments are real output of `s3spool`, before an S3 server of its own. Needs the extra `demo`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from xml.sax.saxutils import escape

from s3spool.demo.seaweed import Seaweed

BUCKET = "my-bucket"
COLUMNS = 94
MAX_GAP_S = 1.6  # a longer silence is cut to this
TYPED_GAP_S = 0.9  # before a command appears
TIMEOUT_S = 120.0
CONFIGURATION = """\
[watch]
directory = "outbox"
[destination]
bucket = "my-bucket"
"""


class Session:
    """The lines of one terminal, each with the time at which it appeared."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.lines: list[tuple[float, str, str]] = []
        self._directory = directory
        self._environment = environment
        self._changed = threading.Condition()
        self._daemon: subprocess.Popen[str] | None = None

    def comment(self, text: str) -> None:
        self._add("comment", f"# {text}")

    def type(self, command: str) -> None:
        """Run the command and show what it prints."""
        self._add("typed", f"$ {command}")
        words = command.replace("s3spool", f"{sys.executable} -m s3spool", 1)
        done = subprocess.run(  # noqa: S602 - a command as a person types it
            words,
            shell=True,
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            self._add("output", line)

    def start_daemon(self) -> None:
        self._add("typed", "$ s3spool run &")
        self._daemon = subprocess.Popen(
            [sys.executable, "-m", "s3spool", "run"],
            cwd=self._directory,
            env=self._environment | {"S3SPOOL_LOG__FORMAT": "console"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._follow, daemon=True).start()

    def stop_daemon(self) -> None:
        if self._daemon:
            self._daemon.terminate()
            self._daemon.wait()

    def until(self, text: str) -> None:
        """Wait for a line of the daemon. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: any(text in line for _, _, line in self.lines), TIMEOUT_S):
                raise TimeoutError(f"no line has {text!r}: {self.lines}")

    def _follow(self) -> None:
        for line in self._daemon.stdout if self._daemon and self._daemon.stdout else ():
            self._add("log", line.rstrip())

    def _add(self, kind: str, text: str) -> None:
        with self._changed:
            self.lines.append((time.monotonic(), kind, text.replace(str(self._directory), "~")))
            self._changed.notify_all()


def record(directory: Path) -> list[tuple[float, str, str]]:
    with Seaweed(directory / "server", access_key="AKRECORDING", secret_key="recording") as server:  # noqa: S106
        server.create_bucket(BUCKET)
        home = directory / "home"
        (home / "outbox").mkdir(parents=True)
        (home / "s3spool.toml").write_text(CONFIGURATION, encoding="utf-8")
        for name, kib in (("photo.jpg", 900), ("report.pdf", 300), ("notes.txt", 2)):
            (home / name).write_bytes(os.urandom(kib << 10))
        foreign = ("AWS_", "S3SPOOL_", "NOTIFY_SOCKET")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environment |= server.environment() | {
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "NO_COLOR": "1",
        }
        session = Session(home, environment)
        try:
            _play(session, server, directory)
        finally:
            session.stop_daemon()
        return session.lines[: session.lines.index(next(line for line in session.lines if line[2] == "# end"))]


def _play(session: Session, server: Seaweed, directory: Path) -> None:
    session.start_daemon()
    session.until("daemon.ready")
    session.type("cp photo.jpg outbox/")
    session.until("file.uploaded photo.jpg")

    session.comment("the S3 server goes away")
    server.stop()
    session.type("cp report.pdf outbox/")
    session.until("destination.paused")
    session.type("s3spool why outbox/report.pdf")
    session.comment("the S3 server is back")
    again = Seaweed(directory / "server", port=server.port, access_key="AKRECORDING", secret_key="recording")  # noqa: S106
    with again:
        session.until("file.uploaded report.pdf")

        session.type("s3spool pause --reason 'the line is busy'")
        session.type("cp notes.txt outbox/")
        time.sleep(2)  # the settle time, so that status shows the file as queued
        session.type("s3spool status | head -n 4")
        session.type("s3spool resume")
        session.until("file.uploaded notes.txt")
        session.type("s3spool why outbox/notes.txt")
        session.comment("end")


def picture(lines: list[tuple[float, str, str]]) -> str:
    """The lines as SVG: each appears at its time; where motion is unwanted all are there at once."""
    rows: list[str] = []
    clock, before = 0.4, lines[0][0]
    for moment, kind, text in lines:
        clock += TYPED_GAP_S if kind in {"typed", "comment"} else min(moment - before, MAX_GAP_S)
        before = moment
        for piece in textwrap.wrap(text, COLUMNS, subsequent_indent="    ") or [""]:
            place = f'x="16" y="{48 + 18 * len(rows)}" style="animation-delay:{clock:.1f}s" xml:space="preserve"'
            rows.append(f'<text class="{kind}" {place}>{escape(piece)}</text>')
    height = 48 + 18 * len(rows)
    body = "\n".join(rows)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img">
<title>A terminal: a file is uploaded, the server goes away and comes back, uploads are paused and resumed</title>
<style>
.frame {{ fill: #f6f8fa; stroke: #d0d7de; }}
.dot {{ fill: #afb8c1; }}
text {{ font: 12.5px ui-monospace, "DejaVu Sans Mono", monospace; fill: #24292f; animation: show 0.01s both; }}
.typed {{ fill: #0550ae; font-weight: 600; }}
.log {{ fill: #1a7f64; }}
.comment {{ fill: #bc4c00; }}
@keyframes show {{ from {{ opacity: 0; }} to {{ opacity: 1; }} }}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none; }} }}
@media (prefers-color-scheme: dark) {{
  .frame {{ fill: #161b22; stroke: #30363d; }}
  .dot {{ fill: #57606a; }}
  text {{ fill: #e6edf3; }}
  .typed {{ fill: #79c0ff; }}
  .log {{ fill: #3fb991; }}
  .comment {{ fill: #f0883e; }}
}}
</style>
<rect class="frame" x="0.5" y="0.5" width="759" height="{height - 1}" rx="8"/>
<path class="dot" d="M16 16 a5 5 0 0 0 10 0 a5 5 0 0 0 -10 0 m18 0 a5 5 0 0 0 10 0 a5 5 0 0 0 -10 0"/>
{body}
</svg>
"""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        Path(sys.argv[1]).write_text(picture(record(Path(place))), encoding="utf-8")
