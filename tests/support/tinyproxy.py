"""A real proxy, Debian's tinyproxy, that asks for a password."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from support.waiting import eventually

USER, PASSWORD = "uploader", "Pa55-word.of_proxy"


class Tinyproxy:
    """Listens on loopback while it is entered; skips the test where tinyproxy is not installed."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("tinyproxy")
        if program is None:
            pytest.skip("needs tinyproxy (apt install tinyproxy)")
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port: int = free.getsockname()[1]
        self._log = directory / "tinyproxy.log"
        self._config = directory / "tinyproxy.conf"
        self._config.write_text(
            f'Port {self.port}\nListen 127.0.0.1\nMaxClients 300\nTimeout 60\nLogFile "{self._log}"\nLogLevel Connect\n'
            f"BasicAuth {USER} {PASSWORD}\n"
        )
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{USER}:{PASSWORD.replace('-', '%2D')}@127.0.0.1:{self.port}"

    def requests(self) -> list[str]:
        """First lines of the requests that came, like `CONNECT 127.0.0.1:443 HTTP/1.1`."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line.partition("): ")[2] for line in lines if "Request (" in line]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [self._program, "-d", "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            eventually(self._listens, message="tinyproxy to listen")
        except AssertionError:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
