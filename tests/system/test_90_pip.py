"""Without the package: a virtual environment, and `s3spool service install`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.waiting import eventually
from system.building import LOCKS, REPOSITORY
from system.conftest import BUCKET, GIVEN
from system.service import PERSON, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.faulty import FaultyS3
    from system.building import Builder
    from system.conftest import Build
    from system.machine import Machine

OWN = ("/var/lib/systemd", "/var/cache", "/var/log")
PROGRAM = "/opt/s3spool/bin/s3spool"
# What an uninstallation says that it leaves, and what systemd-sysusers and the journal keep for themselves.
STAYS = (
    "/var/lib/s3spool",
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/sub",
    "/etc/.pwd",
)


@pytest.fixture(scope="session")
def wheels(builder: Builder, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[Path]:
    """s3spool and all that it needs, for the system's Python: the machine asks no package index."""
    if not GIVEN:
        build: Build = request.getfixturevalue("build")
        build.deb()
        return list(build.wheels.iterdir())  # those of the package
    home = tmp_path_factory.mktemp("wheels")
    target = home / "wheels"
    tools = home / "venv/bin/pip"
    wheel: list[str | Path] = [tools, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", target]
    commands: tuple[list[str | Path], ...] = (
        ["/usr/bin/python3", "-m", "venv", home / "venv"],
        [tools, "install", "--quiet", "--require-hashes", "--requirement", LOCKS[0]],
        [*wheel, "--require-hashes", "--requirement", LOCKS[1]],
        [*wheel, REPOSITORY],
    )
    for command in commands:
        done = builder.run(*command, shared=(home,))
        assert done.returncode == 0, done.stdout[-3000:]
    return list(target.iterdir())


@pytest.fixture(scope="module")
def pip_installed(machine: Machine, wheels: list[Path]) -> Iterator[Machine]:
    """As the README says it, on a machine without the package."""
    machine.run("systemctl stop 's3spool*'; apt-get purge -y s3spool", check=False)
    machine.run("rm -rf /var/spool/s3spool* /var/lib/s3spool* /run/s3spool* /etc/s3spool /etc/systemd/system/s3spool*")
    machine.run("systemctl daemon-reload; systemctl reset-failed")
    for wheel in wheels:
        machine.write(f"/root/wheels/{wheel.name}", wheel.read_bytes())
    install = "/opt/s3spool/bin/pip install --quiet --no-index --find-links /root/wheels 's3spool[systemd]'"
    machine.run(f"python3 -m venv /opt/s3spool && {install}")
    machine.run(f"{PROGRAM} --help && {PROGRAM} service --help")
    yield machine
    machine.run("systemctl stop s3spool; rm -rf /opt/s3spool", check=False)


def files(machine: Machine) -> set[str]:
    """All that is on the machine, but for what the system itself writes all the time."""
    found = machine.out("find /etc /usr /opt /srv /var -xdev -not -name '*.pyc' -not -name __pycache__").splitlines()
    return {path for path in found if not path.startswith((*STAYS, *OWN))}


def test_install_then_run_then_uninstall(pip_installed: Machine, faulty: FaultyS3) -> None:
    """The same service as the package's: it uploads, and what is taken back is exactly what was made."""
    machine = pip_installed
    before = files(machine)

    said = machine.out(f"{PROGRAM} service install")

    assert "systemctl enable --now s3spool" in said
    made = files(machine) - before
    assert {"/etc/systemd/system/s3spool.service", "/etc/s3spool/s3spool.toml", "/var/spool/s3spool"} <= made
    assert machine.out("stat -c '%a %U %G' /var/spool/s3spool") == "3770 s3spool s3spool"
    machine.run(f"id {PERSON} || useradd --create-home {PERSON}; usermod --append --groups s3spool {PERSON}")
    sample = machine.path("/etc/s3spool/s3spool.toml").read_bytes()
    service = Service(machine)
    service.credentials()
    service.configure(faulty.endpoint_url, BUCKET)
    machine.run("systemctl enable --now s3spool")
    service.drop("by-pip", "content")
    service.wait_event("file.uploaded", path="by-pip")
    assert faulty.contents() == {"by-pip": b"content"}
    assert service.state() == ("active", "running")
    judged = machine.out("systemd-analyze security s3spool --no-pager").splitlines()[-1]
    assert float(judged.split(":")[1].split()[0]) <= 1.5, judged
    assert machine.run(f"{PROGRAM} service check", check=False).returncode == 0
    pid = service.pid

    service.empty()
    machine.path(service.credentials_file).unlink()
    machine.write(service.config_file, sample)
    said = machine.out(f"{PROGRAM} service uninstall")

    eventually(lambda: not machine.path(f"/proc/{pid}").exists(), timeout_s=30, message="the daemon has ended")
    assert files(machine) == before
    assert "/var/lib/s3spool" in said
    assert machine.run("systemctl cat s3spool", check=False).returncode


def test_what_a_person_has_put_there_stays(pip_installed: Machine) -> None:
    """A changed configuration and files in the folder are not the program's to remove."""
    machine = pip_installed
    machine.run(f"{PROGRAM} service install")
    machine.write("/etc/s3spool/s3spool.toml", "# mine\n")
    machine.write("/var/spool/s3spool/precious", "data")

    said = machine.out(f"{PROGRAM} service uninstall")

    assert machine.path("/etc/s3spool/s3spool.toml").read_text() == "# mine\n"
    assert machine.path("/var/spool/s3spool/precious").read_text() == "data"
    assert "/etc/s3spool/s3spool.toml stays" in said
    assert "/var/spool/s3spool stays" in said
    assert machine.run(f"{PROGRAM} service uninstall", check=False).returncode == 1


def test_an_instance_of_another_user(pip_installed: Machine, faulty: FaultyS3) -> None:
    """Beside the first service, under the name that was given, with a folder, ledger and socket that are its user's."""
    machine = pip_installed
    machine.run("rm -rf /etc/s3spool /var/spool/s3spool; useradd --system --user-group courier")
    machine.run(
        f"{PROGRAM} service install && {PROGRAM} service install --name two --user courier --directory /srv/two"
    )
    first, two = Service(machine), Service(machine, "two")
    two.folder = "/srv/two"
    machine.run(f"id {PERSON} || useradd {PERSON}; usermod --append --groups s3spool {PERSON}")
    for service, prefix in ((first, "first/"), (two, "two/")):
        service.credentials()
        service.configure(faulty.endpoint_url, BUCKET, destination={"prefix": prefix})
        service.empty()
        service.start()
    assert machine.out("stat -c '%a %U %G' /srv/two") == "3770 courier courier"

    first.drop("mine")
    two.drop("mine", user="courier")

    expected = {"first/mine": b"content", "two/mine": b"content"}
    eventually(lambda: faulty.contents() == expected, timeout_s=60, message="each by its own service")
    assert machine.out(f"stat -c %U /proc/{two.pid}") == "courier"
    assert machine.out("stat -c '%U' /var/lib/s3spool /var/lib/s3spool-two").split() == ["s3spool", "courier"]
    status = f"{PROGRAM} status --json --config {two.config_file}"
    assert f'"pid":{two.pid}' in machine.out(status, user="courier").replace(" ", "")
    first.systemctl("stop")
    assert f'"pid":{two.pid}' in machine.out(status, user="courier").replace(" ", "")
    machine.run(f"{PROGRAM} service uninstall --name two; {PROGRAM} service uninstall")
