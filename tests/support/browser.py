"""A headless Chromium, driven through its debugging pipe: no driver, no port, no further library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from support.waiting import eventually

WAIT_S = 30.0
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--hide-scrollbars",
)  # fmt: skip


def chromium() -> str:
    """The program; skips the test where there is none."""
    for name in _PROGRAMS:
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium here: apt install chromium")


class Browser:
    """One page. `errors` are what the page's console complains of."""

    def __init__(self, profile: Path, *, width: int = 1000, height: int = 900, dark: bool = False) -> None:
        requests, answers = os.pipe(), os.pipe()

        def pipes() -> None:
            read, write = os.dup(requests[0]), os.dup(answers[1])
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [chromium(), *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=pipes,  # noqa: PLW1509 - descriptors 3 and 4 are what the program expects
            pass_fds=(3, 4),
            process_group=0,
        )
        os.close(requests[0])
        os.close(answers[1])
        self._requests = requests[1]
        self._answers = os.fdopen(answers[0], "rb")
        self._waiting: dict[int, dict[str, Any]] = {}
        self.errors: list[str] = []
        self._session = ""
        self._number = 0
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        eventually(lambda: self.run("document.readyState") == "complete", timeout_s=WAIT_S)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it makes."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        return eventually(lambda: self.run(script), timeout_s=WAIT_S, message=script)

    def text(self, selector: str = "body") -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, path: Path) -> None:
        taken = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._requests)
        self._thread.join()
        self._answers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        answer = eventually(lambda: self._waiting.pop(number, None), timeout_s=WAIT_S, message=method)
        assert answer is not None
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _listen(self) -> None:
        buffer = b""
        while chunk := os.read(self._answers.fileno(), 65536):
            *messages, buffer = (buffer + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._waiting[message["id"]] = message
                elif message["method"] == "Log.entryAdded":
                    self.errors.append(str(message["params"]["entry"]["text"]))
                elif message["method"] == "Runtime.exceptionThrown":
                    self.errors.append(str(message["params"]["exceptionDetails"]))
