"""The destination fails for everybody: one line, nobody works or pays for it, and all flows when it is over."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from s3spool.failure.breaker import STREAK
from support.daemon import Daemon, Make
from support.faults import Delay, HoldUntil, Status
from support.faulty import FaultyS3, make_certificate
from support.objects import folder_files
from support.waiting import eventually

pytestmark = pytest.mark.integration

WORKERS = 20
FILES = 60
MANY = int(os.environ.get("S3SPOOL_TEST_FILES", "200000"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Daemons for such a server."""
    with ExitStack() as stack:

        def daemon(server: FaultyS3, **sections: Any) -> Daemon:
            retry = {"initial_s": 0.1, "max_s": 1, "max_attempts": 1} | sections.pop("retry", {})
            sections.setdefault("upload", {"workers": WORKERS})
            sections.setdefault("after", {"action": "delete"})
            return stack.push(Daemon(tmp_path, server, retry=retry, watch={"rescan_s": 3600}, **sections))

        yield daemon


def drop(daemon: Daemon, name: str) -> dict[str, bytes]:
    files = {f"{name} {number}": b"content of %d" % number for number in range(FILES)}
    daemon.drop_all(files)
    return files


def last_through(
    daemon: Daemon, server: FaultyS3, end: Callable[[], None], code: str, hint: str, *, at_once: bool = True
) -> None:
    """Files arrive during the outage; after its end all of them are sent, as if nothing had been.

    `at_once`: several workers send from the first success on: all of them new files, a quarter those that were probes.
    After lost connections the concurrency limiter begins lower.
    """
    files = drop(daemon, "early")
    paused = daemon.wait_event("destination.paused")
    files |= drop(daemon, "late")
    probed = daemon.events("destination.paused")
    eventually(lambda: server.in_flight <= 1)
    assert paused["error_code"] in daemon.cli("status").stdout
    assert folder_files(daemon.folder) == files
    assert server.contents() == {}

    hold = HoldUntil()
    server.script(hold, times=None, match=lambda _: bool(daemon.events("destination.resumed")))
    end()
    resumed = daemon.wait_event("destination.resumed")
    sending = WORKERS // 4 if at_once else 1
    eventually(lambda: server.in_flight >= sending, message="several workers send")
    server.behave()

    eventually(lambda: folder_files(daemon.folder) == {})
    assert server.contents() == files
    assert re.fullmatch(code, paused["error_code"])
    assert re.search(hint, paused["hint"])
    assert paused["error"]
    assert 0 < resumed["duration_s"] < 60
    # A request that was under way when the first one passed may fail later: that is the outage's, too.
    assert daemon.events("destination.paused") == probed == [paused]
    assert daemon.events("destination.resumed") == [resumed]
    for event in ("file.failed", "file.parked", "file.vanished", "worker.replaced"):
        assert not daemon.events(event)
    assert {line["attempt"] for line in daemon.events("file.uploaded")} == {1}
    assert daemon.stop() == 0


def test_nobody_listens(make: Make) -> None:
    """Connection refused, from the start on."""
    with FaultyS3() as server:
        server.go_down()
        daemon = make(server).start()
        daemon.wait_ready()

        last_through(daemon, server, server.come_up, "COULDNT_CONNECT", "check network", at_once=False)


def test_the_bucket_is_missing(make: Make) -> None:
    """Until somebody makes it."""
    with FaultyS3() as server:
        bucket, server.store.bucket = server.store.bucket, "another"
        daemon = make(server).start()

        def create() -> None:
            server.store.bucket = bucket

        last_through(daemon, server, create, "NoSuchBucket", "create the bucket")


def test_the_clock_is_wrong(make: Make) -> None:
    """The hint says how far it is off, measured by the server's Date."""
    with FaultyS3() as server:
        server.set_date_skew(-7200)
        daemon = make(server).start()

        last_through(
            daemon,
            server,
            lambda: server.set_date_skew(0),
            "RequestTimeTooSkewed",
            r"^set this machine's clock .*; this machine's clock is (7200|7199|7201) s ahead of the server's$",
        )


def test_the_region_is_wrong(make: Make) -> None:
    """A store at an address of its own that refuses the region we sign for."""
    with FaultyS3() as server:
        refusal = Status(
            code=400, error_code="AuthorizationHeaderMalformed", headers={"x-amz-bucket-region": "eu-west-1"}
        )
        wrong = [True]
        server.script(refusal, times=None, match=lambda _: bool(wrong))
        daemon = make(server, destination={"endpoint_url": server.endpoint_url}).start()

        last_through(daemon, server, wrong.clear, "AuthorizationHeaderMalformed", "destination.region")


def test_there_are_no_credentials(make: Make, tmp_path: Path) -> None:
    """Until the file with them appears: boto3's chain is asked again, without a restart."""
    file = tmp_path / "credentials"
    with FaultyS3() as server:
        daemon = make(server, environment={"AWS_SHARED_CREDENTIALS_FILE": str(file)})
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del daemon.environment[name]
        daemon.start()

        def provide() -> None:
            file.with_suffix(".new").write_text("[default]\naws_access_key_id = AK\naws_secret_access_key = sk\n")
            file.with_suffix(".new").rename(file)

        last_through(daemon, server, provide, "NoCredentials", "s3spool check")


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """One that is no good any more, and its successor."""
    made = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        made.append(make_certificate(tmp_path / name))
    return made[0], made[1]


@pytest.mark.parametrize("why", ["expired", "untrusted", "another host's"])
def test_the_certificate_is_wrong(
    why: str, make: Make, tmp_path: Path, certificates: tuple[tuple[Path, Path], tuple[Path, Path]]
) -> None:
    """Until the server has another one."""
    old, new = certificates
    known = [new[0]] if why == "untrusted" else [old[0], new[0]]
    if why != "untrusted":
        name = "DNS:elsewhere.example" if why == "another host's" else "IP:127.0.0.1"
        (tmp_path / "extensions").write_text(f"subjectAltName={name}\n")
        request = f"openssl req -new -key {old[1]} -subj /CN=other"
        sign = f"openssl x509 -req -signkey {old[1]} -days {-1 if why == 'expired' else 2} -out {old[0]}"
        command = f"{request} | {sign} -extfile {tmp_path}/extensions"
        subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(file.read_bytes() for file in known))
    with FaultyS3(certificate=old) as server:
        daemon = make(server, destination={"ca_bundle": str(bundle)}).start()

        def renew() -> None:
            context = server._server._tls
            assert context is not None
            context.load_cert_chain(*new)

        last_through(daemon, server, renew, "PEER_FAILED_VERIFICATION|SSL_CONNECT_ERROR", "certificate")


def test_the_ca_bundle_is_wrong(
    make: Make, tmp_path: Path, certificates: tuple[tuple[Path, Path], tuple[Path, Path]]
) -> None:
    """Until the right certificate is in the file: it is read again, by all workers."""
    other, right = certificates
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(other[0].read_bytes())
    with FaultyS3(certificate=right) as server:
        daemon = make(server, destination={"ca_bundle": str(bundle)}).start()

        def mend() -> None:
            bundle.write_bytes(right[0].read_bytes())

        last_through(daemon, server, mend, "PEER_FAILED_VERIFICATION", "destination.ca_bundle")


def with_mounts(daemon: Daemon, files: dict[Path, str]) -> None:
    """It sees these files at those places."""
    mounts = " && ".join(f"mount --bind {file} {place}" for file, place in files.items())
    confined = ("unshare", "--mount", "sh", "-c")
    if subprocess.run([*confined, mounts], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    daemon.program = (*confined, f'{mounts} && exec "$@"', "sh", *daemon.program)


def test_the_name_does_not_resolve(make: Make, tmp_path: Path) -> None:
    """Until DNS (here: the hosts file of a mount namespace) knows it again, for all workers at once."""
    hosts, resolver = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("127.0.0.1 localhost\n")
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    with FaultyS3() as server:
        daemon = make(server, environment={"AWS_ENDPOINT_URL_S3": f"http://faulty.test:{server.port}"})
        with_mounts(daemon, {hosts: "/etc/hosts", resolver: "/etc/resolv.conf"})
        daemon.start()

        def resolve() -> None:
            hosts.write_text("127.0.0.1 localhost faulty.test\n")

        last_through(daemon, server, resolve, "COULDNT_RESOLVE_HOST", "DNS")


NAME_S = 45.0  # from the moment at which a name is right again; libcurl keeps names for 60 s


def test_the_name_leads_nowhere(make: Make, tmp_path: Path) -> None:
    """Once it is right, no old answer of DNS keeps the files back."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.0.2 faulty.test\n")
    with FaultyS3() as server:
        daemon = make(server, environment={"AWS_ENDPOINT_URL_S3": f"http://faulty.test:{server.port}"})
        with_mounts(daemon, {hosts: "/etc/hosts"})
        daemon.start()
        daemon.drop("before", b"content")
        assert daemon.wait_event("destination.paused")["error_code"] == "COULDNT_CONNECT"

        hosts.write_text("127.0.0.1 faulty.test\n")

        daemon.drop("after", b"content")
        eventually(lambda: {"before", "after"} <= server.objects.keys(), timeout_s=NAME_S)
        assert daemon.stop() == 0


LATE_S = 150.0  # until the last of such answers
LATE = pytest.mark.parametrize(
    ("late_s", "upload"),
    [
        pytest.param(14.0, {"timeout_s": 1}, id="seconds"),  # libcurl may be eight seconds late
        pytest.param(60.0, {}, marks=pytest.mark.slow, id="a minute, by the default of upload.timeout_s"),
    ],
)


@LATE
@pytest.mark.timeout(300)
def test_one_answer_comes_late(make: Make, late_s: float, upload: dict[str, int]) -> None:
    """The file is sent again by then, and the late answer does no harm."""
    with FaultyS3() as server:
        server.script(Delay(late_s), match="^PUT early 7$")
        daemon = make(server, retry={"max_attempts": 0}, upload={"workers": WORKERS} | upload).start()
        files = drop(daemon, "early")

        failed = daemon.wait_event("file.failed", LATE_S, path="early 7")
        files |= drop(daemon, "late")
        eventually(lambda: folder_files(daemon.folder) == {})
        assert server.in_flight == 1, "the late answer is still to come"
        eventually(lambda: server.in_flight == 0, timeout_s=LATE_S)
        files |= drop(daemon, "last")
        eventually(lambda: folder_files(daemon.folder) == {})

        assert (failed["error_code"], failed["attempt"]) == ("OPERATION_TIMEDOUT", 1)
        assert server.contents() == files
        daemon.wait_uploaded(len(files))
        assert [line["attempt"] for line in daemon.events("file.uploaded", path="early 7")] == [2]
        assert len(daemon.events("file.uploaded")) == len(files)
        assert len(daemon.events("file.failed")) == 1
        assert not daemon.events("destination.paused")
        assert daemon.stop() == 0


@LATE
@pytest.mark.timeout(300)
def test_all_answers_come_late(make: Make, late_s: float, upload: dict[str, int]) -> None:
    """All workers are busy: it is paused before the first of them comes."""
    with FaultyS3() as server:
        server.script(Delay(late_s), times=None)
        daemon = make(server, upload={"workers": WORKERS} | upload).start()
        files = drop(daemon, "file")

        paused = daemon.wait_event("destination.paused", LATE_S)
        assert not daemon.events("file.uploaded")
        assert server.in_flight >= WORKERS, "the late answers are still to come"
        server.behave()
        daemon.wait_event("destination.resumed", LATE_S)
        eventually(lambda: folder_files(daemon.folder) == {}, timeout_s=LATE_S)
        eventually(lambda: server.in_flight == 0, timeout_s=LATE_S)

        assert (paused["error_code"], paused["hint"][:13]) == ("OPERATION_TIMEDOUT", "check network")
        assert server.contents() == files
        daemon.wait_uploaded(len(files))
        assert len(daemon.events("file.uploaded")) == len(files)
        # Some set out between the first time-outs and the pause: they may meet the same after its end.
        assert len(daemon.events("file.failed")) < 2 * STREAK
        assert daemon.events("destination.paused") == [paused]
        assert len(daemon.events("destination.resumed")) == 1
        assert not daemon.events("file.parked")
        assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_thousand_files_arrive_meanwhile(make: Make, tmp_path: Path) -> None:
    """Memory, threads, descriptors and log stay as they are; then all of them are sent, each once."""
    with FaultyS3() as server:
        server.go_down()
        daemon = make(server, after={"action": "keep"}, upload={"workers": 100}).start()
        daemon.wait_event("scan.finished")
        daemon.drop("first")
        daemon.wait_event("destination.paused")
        source = tmp_path / "source"
        rss = []
        for number in range(MANY):
            if number % 10_000 == 0:  # a file has 65,000 names at most
                source.unlink(missing_ok=True)
                source.write_bytes(b"content")
                rss.append(resident(daemon))
            (daemon.folder / f"f{number}").hardlink_to(source)
        rss.append(resident(daemon))
        lines = len(daemon.events())
        print(f"RSS in MiB, at each 10,000 files: {rss}; lines logged: {lines}")  # noqa: T201 - a measurement
        assert lines < 100
        assert max(rss) < rss[0] + 60
        assert len(daemon.events("destination.paused")) == 1

        server.come_up()
        daemon.wait_event("destination.resumed")

        eventually(lambda: daemon.receipts() == MANY + 1, timeout_s=600)
        rss.append(resident(daemon))
        print(f"RSS in MiB at the end: {rss[-1]}")  # noqa: T201 - the same
        assert len(server.objects) == server.count("^PUT") == MANY + 1
        assert not daemon.events("file.failed")
        assert daemon.stop(60) == 0


def resident(daemon: Daemon) -> int:
    """MiB."""
    return daemon.process_status("VmRSS") // 1024
