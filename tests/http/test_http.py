"""Metrics, health and the page: numbers that agree, and a server that takes orders from nobody's other page."""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from s3spool.http.guard import Guard
from s3spool.ledger.reader import Reader
from s3spool.upload.stats import MAX_ERROR_CODES, Histogram, Stats
from support.browser import Browser
from support.daemon import Daemon, Make
from support.faults import Delay, Status
from support.faulty import FaultyS3
from support.inside import inside
from support.waiting import eventually
from support.web import WAIT_S, address, ask, free_port, metrics, order

pytestmark = pytest.mark.integration

TOKEN = "a-token-of-the-test"  # noqa: S105 - of the test
HOSTILE = (
    "<img src=x onerror=document.title='owned'>.csv",
    "a&amp;\"'`${1}.csv",
    "line\nbreak.csv",
    "turned-\u202e\u2066vsc.exe",
    os.fsdecode(b"not-utf8-\xff.csv"),
    "long-" + "x" * 200 + ".csv",
)


@pytest.fixture
def make(make: Make, faulty: FaultyS3) -> Make:
    """Daemons with an HTTP server."""

    def daemon(**sections: Any) -> Daemon:
        service = {"http_listen": f"127.0.0.1:{free_port()}"} | sections.pop("service", {})
        return make(destination={"endpoint_url": faulty.endpoint_url}, service=service, **sections)

    return daemon


def test_numbers_agree(make: Make, faulty: FaultyS3) -> None:
    """Metrics, status over HTTP and the command's answer say the same of uploaded, parked and failed files."""
    faulty.script(Status(code=400, error_code="KeyTooLongError"), times=None, match="PUT .*bad")
    with make(retry={"initial_s": 0.1, "max_s": 1, "max_attempts": 2}) as daemon:
        daemon.wait_ready()
        for number in range(40):
            daemon.drop(f"good-{number}", b"12345")
        daemon.drop("bad")
        daemon.wait_uploaded(40)
        daemon.wait_event("file.parked")

        seen = metrics(daemon)
        over_http = json.loads(ask(daemon, "/api/status")[2])
        command = json.loads(daemon.cli("status", "--json").stdout)

    assert seen["s3spool_files_total", "uploaded"] == 40 == over_http["files"]["uploaded"]
    assert seen["s3spool_files_total", "parked"] == 1 == seen["s3spool_files", "parked"]
    assert seen["s3spool_uploaded_bytes_total", ""] == 200 == over_http["bytes"]["uploaded"]
    assert seen["s3spool_retries_total", "KeyTooLongError"] >= 1
    for state in ("settling", "queued", "uploading", "waiting", "parked"):
        assert seen["s3spool_files", state] == over_http["files"][state] == command["files"][state]
    assert seen["s3spool_destination_paused", ""] == 0
    assert seen["s3spool_upload_seconds_count", ""] == 40 == seen["s3spool_upload_seconds_bucket", "+Inf"]
    assert seen["s3spool_completion_to_upload_seconds_count", ""] == 40
    assert 0 < seen["s3spool_upload_seconds_sum", ""] < 40 * WAIT_S
    assert seen["s3spool_info", f"{os.uname().nodename},{over_http['version']}"] == 1
    assert seen["process_resident_memory_bytes", ""] > 0
    assert seen["process_open_fds", ""] > 0
    assert {"s3spool_watch_overflows_total", "s3spool_watch_missed_files_total", "s3spool_oldest_unsent_seconds"} <= {
        name for name, _ in seen
    }
    assert {name for name in command if name != "rate"} == {name for name in over_http if name != "rate"}


def test_health_says_why_not(make: Make, faulty: FaultyS3) -> None:
    """200 while it can upload; 503 with the reason while the destination refuses all, and 200 again after that."""
    with make() as daemon:
        daemon.wait_ready()
        assert (ask(daemon, "/healthz")[0], json.loads(ask(daemon, "/healthz")[2])) == (200, {"status": "ok"})
        faulty.script(Status(code=403, error_code="AccessDenied"), times=None, match="^PUT")
        daemon.drop("a")
        daemon.wait_event("destination.paused")

        status, headers, body = ask(daemon, "/healthz")

        assert (status, headers["content-type"]) == (503, "application/json")
        assert "destination paused: 403 AccessDenied since" in json.loads(body)["reason"]
        assert metrics(daemon)["s3spool_destination_paused", ""] == 1
        faulty.behave()
        daemon.wait_event("destination.resumed")
        eventually(lambda: ask(daemon, "/healthz")[0] == 200)
        daemon.folder.rename(daemon.home / "elsewhere")
        eventually(lambda: ask(daemon, "/healthz")[0] == 503)
        assert "the folder is gone" in json.loads(ask(daemon, "/healthz")[2])["reason"]


def test_orders(make: Make, faulty: FaultyS3) -> None:
    """The page's orders do what the commands do; a wrong one is refused with a sentence."""
    faulty.script(Status(code=400, error_code="KeyTooLongError"), times=None, match="PUT .*bad")
    with make(log={"level": "debug"}, retry={"initial_s": 0.1, "max_s": 1, "max_attempts": 1}) as daemon:
        daemon.wait_ready()
        daemon.drop("bad")
        daemon.drop("good")
        daemon.wait_event("file.parked")
        faulty.behave()

        assert order(daemon, "retry", {"paths": ["no such"]})[0] == 400
        assert order(daemon, "retry", {"paths": ["bad"]}) == (200, {"released": 1, "probing": False})
        daemon.wait_event("file.uploaded", path="bad")
        scans = len(daemon.events("scan.finished"))
        assert order(daemon, "rescan", {})[0] == 200
        eventually(lambda: len(daemon.events("scan.finished")) > scans)
        assert order(daemon, "forget", {"path": "good"})[0] == 404
        assert order(daemon, "status", {})[0] == 404
        assert ask(daemon, "/api/rescan", method="POST", body=b"[]", X_S3Spool="1")[0] == 400
        assert ask(daemon, "/api/rescan", method="POST", body=b"{" * 300_000, X_S3Spool="1")[0] == 413
        assert ask(daemon, "/api/rescan", method="DELETE")[0] == 405
        assert ask(daemon, "/api/rescan")[0] == 404
        assert ask(daemon, "/../etc/passwd")[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"X_S3Spool": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": "evil.example"},
    ],
    ids=str,
)
def test_no_order_from_a_foreign_page(headers: dict[str, str], make: Make) -> None:
    """CSRF: a form or a script of another origin moves nothing."""
    with make() as daemon:
        daemon.wait_ready()

        assert order(daemon, "rescan", {}, **headers)[0] == 403
        assert order(daemon, "rescan", {}, Origin=f"http://{address(daemon)}", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    ("listen", "host", "answered"),
    [
        ("127.0.0.1", "127.0.0.1:9464", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "LOCALHOST:1", True),
        ("::1", "[::1]:9464", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "localhost.evil.example:9464", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "192.0.2.1", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[", False),
        ("0.0.0.0", "192.0.2.1:9464", True),  # noqa: S104 - an example
        ("0.0.0.0", "evil.example", False),  # noqa: S104 - an example
        ("0.0.0.0", socket.gethostname(), True),  # noqa: S104 - an example
        ("spool.example", "spool.example:9464", True),
    ],
)
def test_host_header(listen: str, host: str, *, answered: bool) -> None:
    """DNS rebinding: a name that is not this server's own is refused, reading included."""
    refusal = Guard(listen, "").refuse({"HTTP_HOST": host, "REQUEST_METHOD": "GET"})

    assert (refusal is None) == answered


def test_token(make: Make) -> None:
    """With a token nothing is answered without it; it never reaches the log."""
    password = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    with make(service={"http_token": TOKEN}) as daemon:
        daemon.wait_ready()

        for path in ("/", "/metrics", "/healthz", "/api/status", "/page.js"):
            status, headers, _ = ask(daemon, path)
            assert (status, headers["www-authenticate"]) == (401, 'Basic realm="s3spool"')
            assert ask(daemon, path, Authorization=f"Bearer {TOKEN}")[0] == 200
            assert ask(daemon, path, Authorization=f"Basic {password}")[0] == 200
        for wrong in (f"Bearer {TOKEN}x", "Bearer", "Basic ???", "Digest x", "Bearer \xff"):
            assert ask(daemon, "/metrics", Authorization=wrong)[0] == 401
        assert TOKEN not in daemon.log_path.read_text()


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        ({"http_listen": "0.0.0.0:9464"}, 'service.http_listen = "0.0.0.0:9464": other hosts can reach this'),
        ({"http_listen": "spool.example:9464"}, "other hosts can reach this address: set service.http_token"),
        ({"http_token": "short"}, "service.http_token: must be 16 or more printable ASCII characters"),
        ({"http_listen": "[2001:db8::1]:9464", "http_token": TOKEN}, "cannot listen: Cannot assign requested address"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings(service: dict[str, str], problem: str, make: Make) -> None:
    """A clear error and exit code 78."""
    daemon = make(service=service)
    daemon.start()

    assert daemon.wait_exit() == 78
    assert problem in daemon.log_tail()
    assert "short" not in daemon.log_tail()


def test_port_that_is_taken(make: Make) -> None:
    """The setting is named, and the daemon does not run without its page."""
    daemon = make()
    host, _, port = address(daemon).partition(":")
    with closing(socket.create_server((host, int(port)))):
        daemon.start()

        assert daemon.wait_exit() == 78
    assert f'service.http_listen = "{address(daemon)}": another program listens there' in daemon.log_tail()


def test_without_the_extra(make: Make) -> None:
    """The error names the extra."""
    daemon = make()
    code = "import sys; sys.modules['waitress'] = None; from s3spool.__main__ import main; main()"
    daemon.program = (sys.executable, "-c", code)
    daemon.start()

    assert daemon.wait_exit() == 78
    assert "needs the extra http" in daemon.log_tail()
    assert "pip install 's3spool[http]'" in daemon.log_tail()


def test_dead_server_is_noticed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """systemd's watchdog restarts a daemon whose page is dead."""
    daemon = inside(tmp_path, request)

    class Dead:
        def alive(self) -> bool:
            return False

    daemon._http = Dead()  # type: ignore[assignment] # all that is asked
    assert "http" in daemon.silent_threads(time.monotonic())
    daemon.components.lock.release()


def test_headers(make: Make) -> None:
    """No script but the page's own, nothing from elsewhere, nobody's frame, nothing in a cache."""
    with make() as daemon:
        daemon.wait_ready()

        for path in ("/", "/page.js", "/page.css", "/api/status", "/nothing"):
            _, headers, _ = ask(daemon, path)
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
        assert ask(daemon, "/", method="HEAD")[2] == b""
        assert b"http" not in ask(daemon, "/")[2].replace(b"http-", b"")


def test_slow_and_many_connections(make: Make) -> None:
    """Connections that send nothing take neither the answers of others nor the uploads; the daemon stops at once."""
    with make() as daemon:
        daemon.wait_ready()
        host, _, port = address(daemon).partition(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(50)]
        for connection in idle[:10]:
            connection.send(b"GET / HTTP/1.1\r\nHost: ")

        assert ask(daemon, "/healthz")[0] == 200
        daemon.drop("a")
        daemon.wait_uploaded(1)
        start = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - start < 5
        for connection in idle:
            connection.close()


@pytest.mark.browser
def test_page_with_hostile_names(make: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """Names are text: no script runs, nothing turns the line around; the buttons work; it fits 360 px in the dark."""
    faulty.script(Status(code=400, error_code="KeyTooLongError"), times=None, match="PUT .*(csv|exe)")
    faulty.script(Delay(0.05), times=None)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with make(retry={"initial_s": 0.1, "max_s": 1, "max_attempts": 1}) as daemon, Browser(tmp_path / "profile") as page:
        daemon.wait_ready()
        for name in HOSTILE:
            daemon.drop(name)
        for number in range(30):
            daemon.drop(f"good-{number}", b"x" * 1000)
        eventually(lambda: json.loads(ask(daemon, "/api/status")[2])["files"]["parked"] == len(HOSTILE))

        page.open(f"http://{address(daemon)}/")
        page.wait(f"document.querySelectorAll('#parked li').length === {len(HOSTILE)}")
        names = page.run("[...document.querySelectorAll('#parked .name')].map(it => it.textContent)")
        page.screenshot(pictures / "light.png")

        assert page.run("document.title").startswith("running")
        assert page.run("document.querySelectorAll('img').length") == 0
        assert any("<img src=x onerror=document.title='owned'>" in name for name in names)
        assert any("\\u202e" in name for name in names)
        assert any("\\xff" in name for name in names)
        assert all(name.isprintable() for name in names)
        faulty.behave()
        page.click("#parked button")
        daemon.wait_uploaded(31)
        page.wait("!document.querySelector('#result').hidden")
        page.click("#retry-all")
        page.wait("document.querySelectorAll('#parked li').length === 0")
        page.click("#rescan")
        page.wait("document.querySelector('#result').textContent.includes('scan')")
        page.wait("document.querySelector('#line').getAttribute('points').split(' ').length > 1")
        assert page.errors == []

    if saved := os.environ.get("S3SPOOL_PICTURES"):
        (pictures / "light.png").rename(f"{saved}/page-light.png")


@pytest.mark.browser
def test_page_on_a_phone_in_the_dark(make: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """360 px wide nothing is cut off, whatever the names; the colours are dark; a daemon that ends is said to."""
    faulty.script(Status(code=403, error_code="AccessDenied"), times=None, match="^PUT")
    with make() as daemon, Browser(tmp_path / "profile", width=360, height=740, dark=True) as page:
        daemon.wait_ready()
        for name in HOSTILE:
            daemon.drop(name)
        daemon.wait_event("destination.paused")

        page.open(f"http://{address(daemon)}/")
        page.wait("document.querySelector('#banner').textContent.includes('AccessDenied')")
        page.screenshot(tmp_path / "dark.png")

        assert page.run("document.documentElement.scrollWidth") == 360
        ground = page.run("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in ground.removeprefix("rgb(").rstrip(")").split(",")) < 64
        daemon.kill()
        page.wait("document.querySelector('#offline').textContent.includes('does not answer')")

    if saved := os.environ.get("S3SPOOL_PICTURES"):
        (tmp_path / "dark.png").rename(f"{saved}/page-dark.png")


def test_histogram() -> None:
    """A value that equals a bound belongs below it; one above all bounds is counted too."""
    histogram = Histogram((0.1, 1.0))

    for value in (0.05, 0.1, 0.5, 1.0, 5.0):
        histogram.observe(value)

    assert histogram.counts == [2, 2, 1]
    assert histogram.total == pytest.approx(6.65)


def test_error_codes_are_bounded() -> None:
    """A server that answers each request with another code does not fill the metrics."""
    stats = Stats()

    for number in range(10 * MAX_ERROR_CODES):
        stats.count_failure(f"code-{number}")

    assert len(stats.failures) == MAX_ERROR_CODES + 1
    assert stats.failures["other"] == 9 * MAX_ERROR_CODES


def test_idle_server_wakes_rarely(make: Make) -> None:
    """Neither the loop nor the answering threads wake while nobody asks."""
    with make() as daemon:
        daemon.wait_ready()
        assert ask(daemon, "/healthz")[0] == 200

        def switches() -> dict[str, int]:
            found = {}
            for task in (Path("/proc") / str(daemon.pid) / "task").iterdir():
                status = (task / "status").read_text()
                name = status.partition("\n")[0].removeprefix("Name:").strip()
                if name.startswith(("http", "waitress")):
                    found[name + task.name] = int(status.rpartition("nonvoluntary")[0].split()[-1])
            return found

        before = switches()
        time.sleep(3)
        after = switches()

    assert len(before) == 5
    assert sum(after.values()) - sum(before.values()) <= 2


def test_check_tries_the_port(make: Make) -> None:
    """Free, taken by another program, in use by the daemon."""
    daemon = make()
    host, _, port = address(daemon).partition(":")

    def told() -> str:
        lines = daemon.cli("check").stdout.splitlines()
        return next(line for line in lines if line.split()[1] == "http:")

    with daemon:
        daemon.wait_ready()
        assert "in use while the daemon runs" in told()
        assert daemon.stop() == 0
    assert told().startswith("ok      http: http://127.0.0.1:")
    with closing(socket.create_server((host, int(port)))):
        assert told().startswith("error   http: service.http_listen")


def test_all_numbers_agree_during_a_load(make: Make, faulty: FaultyS3) -> None:
    """Metrics, status, page and ledger never run backwards, and say the same once all is sent, faults or not."""
    count = int(os.environ.get("S3SPOOL_TEST_FILES", "2000"))
    faulty.script(Status(code=500, error_code="InternalError"), times=None, match=r"PUT \d*7\d$")
    faulty.script(Status(code=400, error_code="KeyTooLongError"), times=None, match="PUT .*bad")
    with make(retry={"initial_s": 0.1, "max_s": 0.2, "max_attempts": 1}) as daemon:
        daemon.wait_ready()
        seen: list[float] = []
        for number in range(count):
            daemon.drop(f"{number:05}", b"x" * 10)
            if number % 100 == 0:
                daemon.drop(f"bad-{number:05}")
                found = metrics(daemon)
                seen.append(found["s3spool_files_total", "uploaded"])
                assert found["s3spool_upload_seconds_count", ""] >= seen[-1]
        parked = count // 10 + count // 100
        later = 0

        def all_parked() -> bool:
            nonlocal later
            if metrics(daemon)["s3spool_files", "parked"] == parked:
                return True
            later += 1
            daemon.drop(f"later-{later}", b"x" * 10)  # only a success proves whose fault the last failures are
            return False

        eventually(all_parked, timeout_s=max(90, count / 50))
        eventually(lambda: _unsent(metrics(daemon)) == parked)
        found = metrics(daemon)
        overview = json.loads(ask(daemon, "/api/overview")[2])
        with Reader(daemon.state_directory / "ledger.sqlite3") as reader:
            counts, size = reader.counts(), reader.totals().uploaded_bytes

    assert seen == sorted(seen)
    uploaded = count - count // 10 + later
    assert found["s3spool_files_total", "uploaded"] == uploaded == counts["uploaded"]
    assert found["s3spool_uploaded_bytes_total", ""] == 10 * uploaded == size
    assert found["s3spool_upload_seconds_count", ""] == uploaded
    assert overview["status"]["files"]["parked"] == parked == counts["parked"]
    assert overview["status"]["files"]["uploaded"] == uploaded
    assert len(overview["parked"]) == min(50, parked)
    assert found["s3spool_retries_total", "InternalError"] >= count // 10


def _unsent(found: dict[tuple[str, str], float]) -> float:
    return sum(value for (name, state), value in found.items() if name == "s3spool_files" and state != "uploaded")
