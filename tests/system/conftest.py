"""One machine for all tests of this folder, which are read in their order: each begins where the last one stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.faulty import FaultyS3
from system.building import REPOSITORY, Builder
from system.machine import Machine
from system.rootfs import apt_settings, missing, release, rootfs
from system.service import PERSON, STRANGER, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3spool.demo.seaweed import Seaweed

HERE = Path(__file__).parent
BUCKET = "system-bucket"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ours last and in the order in which they stand, whatever pytest-randomly made of them before."""
    items.sort(key=lambda item: (1, item.path.name, item.location[1] or 0) if _ours(item) else (0, "", 0))
    for item in filter(_ours, items):
        item.add_marker(pytest.mark.system)
        item.add_marker(pytest.mark.timeout(600, func_only=True))  # the first one waits for what is built


def _ours(item: pytest.Item) -> bool:
    return HERE in item.path.parents


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    why_not = missing()
    if why_not and os.environ.get("SYSTEM_TESTS") == "required":
        pytest.fail(f"SYSTEM_TESTS=required, but {why_not}", pytrace=False)
    if why_not:
        pytest.skip(why_not)
    with Machine(rootfs(release()), tmp_path_factory.mktemp("machine")) as booted:
        booted.write("/etc/apt/apt.conf.d/99host", apt_settings())
        # Much stricter than Debian's: whoever relies on the default loses lines here.
        booted.write("/etc/systemd/journald.conf.d/strict.conf", "[Journal]\nRateLimitBurst=100\n")
        booted.run("systemctl restart systemd-journald")
        yield booted


QUICK = {"DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"}  # xz takes half of the time of a build
BUILD_S = 1800  # beside the measurements of others
GIVEN = os.environ.get("SYSTEM_TESTS_DEB", "")


class Build:
    """packaging/build-deb in the background."""

    def __init__(self, builder: Builder, home: Path, **environ: str) -> None:
        self.wheels = home / "wheels"  #: what the package was made of
        self.wheels.mkdir()
        self._home = home
        self._log = home / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                builder.command(REPOSITORY / "packaging/build-deb", shared=(home,)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=builder.environment() | QUICK | {"DIST": str(home), "KEEP_WHEELS": str(self.wheels)} | environ,
                start_new_session=True,
            )

    def deb(self) -> Path:
        code = self._process.wait(timeout=BUILD_S)
        assert code == 0, self._log.read_text(errors="replace")[-4000:]
        (built,) = self._home.glob("*.deb")
        return built

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


@pytest.fixture(scope="session")
def builder(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("builder"))


@pytest.fixture(scope="session")
def build(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    started = Build(builder, tmp_path_factory.mktemp("build"))
    yield started
    started.end()


@pytest.fixture(scope="session")
def deb(request: pytest.FixtureRequest) -> Path:
    """The package of this working tree, or the one that SYSTEM_TESTS_DEB names."""
    if GIVEN:
        return Path(GIVEN)
    built: Path = request.getfixturevalue("build").deb()
    return built


@pytest.fixture(scope="session")
def again(builder: Builder, tmp_path_factory: pytest.TempPathFactory, deb: Path) -> Iterator[Build]:
    """The package once more, in another directory and time zone, while other tests run."""
    home = tmp_path_factory.mktemp("again")
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    started = Build(builder, home, TMPDIR=str(elsewhere), TZ="Asia/Tokyo", LANG="C")
    yield started
    started.end()


@pytest.fixture(scope="session")
def installed(machine: Machine, deb: Path, request: pytest.FixtureRequest) -> str:
    """Installed as a person would; what apt said. The people who use it are made too."""
    if not GIVEN:
        request.getfixturevalue("again")  # it takes its time: let it begin
    machine.write(f"/root/{deb.name}", deb.read_bytes())
    said = machine.run(f"apt-get install -y ./{deb.name} 2>&1", check=False, cwd="/root", timeout_s=600)
    assert said.returncode == 0, said.stdout
    machine.run(f"useradd --create-home --groups s3spool {PERSON}; useradd --create-home {STRANGER}")
    return said.stdout


@pytest.fixture
def service(machine: Machine, installed: str) -> Service:
    """s3spool.service, whatever the last test did to it: stopped, its folder empty, nothing remembered."""
    return fresh(machine)


def fresh(machine: Machine) -> Service:
    machine.run("systemctl stop 's3spool*'; systemctl reset-failed", check=False)
    for path in ("/etc/systemd/system/s3spool.service.d", "/etc/systemd/system/s3spool@.service.d"):
        machine.run(f"rm -rf {path}")
    machine.run("rm -rf /var/lib/s3spool/* /var/lib/s3spool-* && systemctl daemon-reload")
    service = Service(machine)
    service.empty()
    service.credentials()
    return service


@pytest.fixture
def store(service: Service, seaweed: Seaweed, bucket: str) -> str:
    """The service runs, and sends to a bucket of the test's own on a real S3 server."""
    service.configure(seaweed.endpoint_url, bucket)
    service.start()
    return bucket


@pytest.fixture
def faulty() -> Iterator[FaultyS3]:
    """An S3 server that does as it is told."""
    with FaultyS3(BUCKET) as server:
        yield server
