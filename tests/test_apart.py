"""What a child process works out for the daemon."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from s3spool.s3.apart import in_child

ALONE = """
import os, sys
from s3spool.s3.apart import in_child
from s3spool.s3 import client
{code}
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child is left")
"""
CONNECTION = "client.Connection('bucket', {url!r}, 'eu-west-1', '', 'auto', None, 5.0)"


def alone(code: str) -> list[str]:
    """The lines that `code` prints in a process with one thread."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE.format(code=code)], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.splitlines()


def test_a_childs_answer_comes_back() -> None:
    """What the work returns arrives, and the child is gone by then."""
    assert alone("print(in_child(lambda: 'välue'))") == ["välue", "no child is left"]


def test_no_child_can_be_had() -> None:
    """No process is left for this user: then there is no answer, and no descriptor stays open."""
    code = (
        "def fork(): raise BlockingIOError(11, 'no process is left')\n"
        "os.fork = fork\n"
        "before = os.listdir('/proc/self/fd')\n"
        "print(in_child(lambda: ''), os.listdir('/proc/self/fd') == before)"
    )
    assert alone(code) == ["None True", "no child is left"]


def test_a_child_that_fails_says_nothing() -> None:
    """The caller does the work itself and meets the error: the child prints none, and none of the parent's output."""
    assert alone("sys.stdout.write('once '); print(in_child(lambda: 1 / 0))") == ["once None", "no child is left"]


def test_a_process_with_threads_is_not_forked() -> None:
    """A fork would have the locks that other threads hold, and nobody to release them."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert in_child(lambda: "never") is None
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9000"])
def test_the_endpoint_is_the_same_from_a_child(url: str) -> None:
    """Where objects go does not depend on which process asks botocore."""
    connection = CONNECTION.format(url=url)
    here = f"client.endpoint(client.session({connection}), {connection}, 'eu-west-1')"

    lines = alone(f"told = client.endpoint_apart({connection}); print(told, told == {here})")

    assert lines[0].startswith("Endpoint(url='http")
    assert lines[0].endswith(" True")
