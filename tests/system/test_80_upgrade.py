"""The package changes under a running service, and leaves."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from support.faults import Status
from support.waiting import eventually
from system.conftest import BUCKET
from system.service import PERSON, names

if TYPE_CHECKING:
    from pathlib import Path

    from support.faulty import FaultyS3
    from system.machine import Machine
    from system.service import Service


def newer(deb: Path, target: Path) -> Path:
    """The same package under a higher version."""
    tree = target / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("(?m)^(Version: .*)$", r"\1+upgrade", control.read_text()))
    repacked = target / "s3spool-upgrade.deb"
    subprocess.run(["dpkg-deb", "--build", "-Zgzip", "-z1", "--root-owner-group", tree, repacked], check=True)
    shutil.rmtree(tree)
    return repacked


def test_an_upgrade_keeps_everything(
    service: Service, faulty: FaultyS3, machine: Machine, deb: Path, tmp_path: Path
) -> None:
    """Another process runs, with the old configuration and ledger: what waited is sent, what was sent is not again."""
    upgrade = newer(deb, tmp_path)
    machine.write("/root/upgrade.deb", upgrade.read_bytes())
    service.configure(faulty.endpoint_url, BUCKET)
    service.start()
    pid = service.pid
    service.drop_many(50)
    eventually(lambda: set(faulty.contents()) == names(50), timeout_s=60, message="50 files in S3")
    machine.run("s3spool wait --timeout 60")
    faulty.script(Status(code=503, error_code="ServiceUnavailable"), times=None)
    service.drop_many(50, first=50)
    service.wait_event("destination.paused")
    config = machine.path(service.config_file).read_text()

    said = machine.run("apt-get install -y ./upgrade.deb 2>&1", cwd="/root").stdout

    assert "is installed and not started" not in said
    assert service.state() == ("active", "running")
    assert service.pid != pid
    assert machine.out("dpkg-query -W -f '${Version}' s3spool").endswith("+upgrade")
    assert machine.path(service.config_file).read_text() == config
    faulty.behave()
    eventually(lambda: set(faulty.contents()) == names(100), timeout_s=60, message="100 files in S3")
    machine.run("s3spool wait --timeout 60")
    assert all(faulty.count(f"^PUT {name}") == 1 for name in names(50))


def test_an_upgrade_starts_nothing_that_did_not_run(service: Service, machine: Machine, deb: Path) -> None:
    """Who has stopped the service keeps it stopped."""
    machine.run(f"apt-get install -y --allow-downgrades ./{deb.name}", cwd="/root")

    assert service.state() == ("inactive", "dead")


def traps(service: Service) -> None:
    """What somebody leaves behind in the hope that root's scripts follow it."""
    machine = service.machine
    machine.write("/srv/precious", "data")
    machine.write("/srv/place/ledger.sqlite3", "data")
    links = "ln -s /srv/precious link && ln -s /srv/place directory"
    machine.run(f"cd {service.folder} && {links}", user=PERSON)
    machine.run("install -d -o s3spool -g s3spool /var/lib/s3spool-instance")
    for link in ("s3spool/ledger.sqlite3-link", "s3spool-instance/daemon.lock"):
        machine.run(f"ln -s /srv/precious /var/lib/{link}", user="s3spool")
    machine.run("cd /var/lib/s3spool && ln -s /srv/place ledger.sqlite3-place", user="s3spool")


def test_removal_stops_and_purge_takes_only_its_own(service: Service, faulty: FaultyS3, machine: Machine) -> None:
    """Removed, it keeps configuration, ledger and files; purged, the files alone are left."""
    service.configure(faulty.endpoint_url, BUCKET)
    machine.run("systemctl enable --now s3spool")
    service.drop_many(10)
    eventually(lambda: set(faulty.contents()) == names(10), timeout_s=60, message="10 files in S3")
    pid = service.pid
    traps(service)

    machine.run("apt-get remove -y s3spool")

    assert not machine.path(f"/proc/{pid}").exists()
    for kept in (service.config_file, "/var/lib/s3spool/ledger.sqlite3", f"{service.folder}/000009.dat"):
        assert machine.path(kept).exists(), kept
    assert not machine.path("/usr/lib/s3spool").exists()

    machine.run("apt-get purge -y s3spool")

    state = ("/var/lib/s3spool", "/var/lib/s3spool-instance", "/run/s3spool")
    for gone in (service.config_file, *state, "/usr/lib/systemd/system/s3spool.service"):
        assert not machine.path(gone).exists(), gone
    assert machine.run("getent passwd s3spool || getent group s3spool", check=False).returncode
    assert machine.run("ls /etc/systemd/system/*.wants/s3spool*", check=False).returncode
    left = {path.name for path in machine.path(service.folder).iterdir()}
    assert left == names(10) | {"link", "directory"}
    for trapped in ("/srv/precious", "/srv/place/ledger.sqlite3"):
        assert machine.path(trapped).read_text() == "data"
    # The next user with the number of this one gets nothing.
    assert machine.out(f"stat -c '%a %U %G' {service.folder}") == "3770 root root"
    assert machine.out(f"stat -c %U {service.folder}/000000.dat") == PERSON
    assert "s3spool" not in machine.out("groups " + PERSON)
    assert machine.run("systemctl cat s3spool", check=False).returncode
