"""Everyday life: people drop files, operators look."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from s3spool.logs.events import EVENTS
from support.faults import Status
from support.waiting import eventually
from system.service import PERSON, SECRET_KEY, STRANGER, names

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from s3spool.demo.seaweed import Seaweed
    from support.faulty import FaultyS3
    from system.machine import Machine
    from system.service import Service

KEYS_AT_ONCE = 1000  # as many as S3 lists in one answer


def keys(s3: S3Client, bucket: str) -> set[str]:
    """All of the bucket."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": KEYS_AT_ONCE})
    return {stored["Key"] for page in pages for stored in page.get("Contents", [])}


def test_enable_now_uploads_what_is_dropped(
    machine: Machine, service: Service, seaweed: Seaweed, bucket: str, s3: S3Client
) -> None:
    """Three steps as the package says them; then a member of the group drops a file, and its bytes are in S3."""
    service.configure(seaweed.endpoint_url, bucket)
    machine.run("systemctl enable --now s3spool")
    assert service.state() == ("active", "running")
    content = "".join(f"line {number}\n" for number in range(10_000))

    service.drop("report.txt", content)

    entry = service.wait_event("file.uploaded", path="report.txt")
    assert s3.get_object(Bucket=bucket, Key="report.txt")["Body"].read() == content.encode()
    assert entry["S3SPOOL_BYTES"] == str(len(content))
    assert entry["S3SPOOL_BUCKET"] == bucket
    assert entry["PRIORITY"] == "6"
    assert entry["SYSLOG_IDENTIFIER"] == "s3spool"
    assert "report.txt" in entry["MESSAGE"]
    assert entry["_TRANSPORT"] == "journal"
    assert service.machine.path("/var/spool/s3spool/report.txt").exists()


def test_an_event_worth_an_alert_is_explained(service: Service, store: str, machine: Machine) -> None:
    """A file that cannot be sent is found by its event, and the catalog says what to do."""
    mark = machine.mark()
    # 5 * 201 + 100 bytes: the key is too long, the directory alone is not.
    name = "/".join(["d" * 200] * 5)
    machine.run(f"mkdir -p {service.folder}/{name} && touch {service.folder}/{name}/{'x' * 100}", user=PERSON)

    entry = service.wait_event("file.parked", after=mark)

    assert entry["PRIORITY"] == "3"
    assert entry["S3SPOOL_HINT"] or entry["S3SPOOL_ERROR"]
    assert entry["MESSAGE_ID"] == "ce5eebd821044193ab4da738d1e0151d"
    catalog = machine.out("journalctl -x -u s3spool -n 1 S3SPOOL_EVENT=file.parked")
    explained = [line for line in catalog.splitlines() if line.startswith("░░")]
    assert any("Subject" in line for line in explained)
    assert any("s3spool retry" in line for line in explained)
    shown = machine.out("journalctl --list-catalog")
    assert [spec.message_id for spec in EVENTS.values() if spec.message_id not in shown] == []


def test_status_for_everybody_who_may(service: Service, store: str, machine: Machine) -> None:
    """systemctl status says how it goes; members of the group ask the daemon, others are told how to be let in."""
    service.drop("one")
    service.wait_event("file.uploaded", path="one")

    eventually(lambda: "1 uploaded" in service.status_text, timeout_s=30, message="the status line counts")
    asked = json.loads(service.cli("status --json", user=PERSON))
    assert asked["files"]["uploaded"] == 1
    assert asked["pid"] == service.pid
    assert asked["state"] == "running"
    for order in ("list", "retry --all", "rescan"):
        assert "permission denied: only root" in machine.run(f"s3spool {order}", user=PERSON, check=False).stderr
    assert service.cli("why one", user=PERSON).startswith("one: uploaded")
    refused = machine.run("s3spool status", user=STRANGER, check=False)
    assert refused.returncode == 1
    assert machine.out("stat -c '%a %U %G' /run/s3spool/control.sock") == "660 s3spool s3spool"
    assert "s3spool" in refused.stderr
    assert "permission denied" in refused.stderr.lower()


def test_the_check_in_the_service_s_place_agrees(service: Service, store: str, machine: Machine) -> None:
    """`s3spool service check` sees what the daemon sees: its user, its credentials, its sandbox."""
    done = machine.run("s3spool service check", check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert store in done.stdout
    assert service.state() == ("active", "running")
    assert machine.out("systemctl list-units --all --plain --no-legend 's3spool-check*'") == ""


def test_no_secret_is_to_be_seen(service: Service, store: str, machine: Machine, faulty: FaultyS3) -> None:
    """Not in process list, environment, systemd's properties, the journal at its most talkative, ledger, or answers."""
    service.change(log={"level": "debug"})
    service.start()
    service.drop("secretive")
    service.wait_event("file.uploaded", path="secretive")
    # An error has more to tell than a success.
    faulty.script(Status(code=403, error_code="SignatureDoesNotMatch"), times=None)
    service.change(destination={"endpoint_url": faulty.endpoint_url, "bucket": faulty.bucket})
    service.start()
    service.drop("refused")
    service.wait_event("destination.paused")
    service.cli("rescan")

    seen = [
        machine.out("ps axeww"),
        machine.path(f"/proc/{service.pid}/environ").read_text(),
        machine.out("systemctl show s3spool && systemctl status s3spool && systemctl show-environment"),
        # With all that any unit has logged: systemd's lines, and those of the kernel.
        machine.out("journalctl --all -o export"),
        *(service.cli(command) for command in ("status --json", "list --json", f"why {service.folder}/refused")),
        *(machine.path(path).read_bytes().decode("latin-1") for path in files(machine)),
    ]
    assert "refused" in "".join(seen[3:])
    assert [text for text in seen if SECRET_KEY in text] == []
    for user in (PERSON, STRANGER):
        assert machine.run("cat /run/credentials/s3spool.service/*", user=user, check=False).returncode
        assert machine.run(f"cat /proc/{service.pid}/environ", user=user, check=False).returncode
    # By boto3's chain, from systemd's copy: the service's user cannot read the original.
    assert machine.run("cat /etc/s3spool/credentials", user="s3spool", check=False).returncode
    assert "AWS_SHARED_CREDENTIALS_FILE=/run/credentials/s3spool.service/aws" in seen[1].split("\0")


def files(machine: Machine) -> list[str]:
    """All that the service keeps."""
    return machine.out("find /var/lib/s3spool /run/s3spool -type f").splitlines()


def test_it_has_no_rights_that_it_does_not_need(service: Service, store: str, machine: Machine) -> None:
    """One capability, no root at any time, and systemd's own judgement of what is left."""
    status = machine.path(f"/proc/{service.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = machine.out("id -u s3spool")
    assert set(fields["Uid"].split()) == {user}
    cap_lease = 1 << 28
    assert {int(fields[name], 16) & ~cap_lease for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert int(fields["CapBnd"], 16) == cap_lease
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"
    judged = machine.out("systemd-analyze security s3spool --no-pager").splitlines()[-1]
    assert float(judged.split(":")[1].split()[0]) <= 1.5, judged
    shown = service.machine.show("s3spool", "User", "ExecStartPre", "ExecStartPost", "ExecCondition")
    assert shown["User"] == "s3spool"
    assert "+" not in machine.out("systemctl cat s3spool | grep -E '^Exec' | cut -d= -f2 | cut -c1")


def test_a_file_that_its_writer_has_open_is_not_taken(service: Service, store: str, machine: Machine) -> None:
    """CAP_LEASE is there for this: the file belongs to somebody else, and a pause of its writer is not its end."""
    writer = machine.spawn(f"sh -c 'exec 3>{service.folder}/slow; echo half >&3; sleep 1000'", user=PERSON)
    try:
        eventually(lambda: "1 settling" in service.cli("status"), timeout_s=20, message="the file is seen")
        for name in ("one", "two"):  # each takes longer than slow would have
            service.drop(name)
            service.wait_event("file.uploaded", path=name)
            service.cli("rescan")
        assert not service.events("file.uploaded", path="slow")
    finally:
        machine.run("pkill -x sleep", check=False)
        writer.communicate()
    service.wait_event("file.uploaded", path="slow")


def test_a_flood_leaves_no_line_out(
    service: Service, seaweed: Seaweed, bucket: str, s3: S3Client, machine: Machine
) -> None:
    """Five thousand files as fast as they can be dropped: each is in S3, and each has its line in the journal."""
    service.configure(seaweed.endpoint_url, bucket, watch={"settle_s": 0})
    service.start()
    mark = machine.mark()

    service.drop_many(5000)

    machine.run("s3spool wait --timeout 120", timeout_s=130)
    told = eventually(
        lambda: len(found := service.events("file.uploaded", after=mark)) >= 5000 and found,
        timeout_s=60,
        message="5,000 lines",
    )
    assert told
    assert {entry["S3SPOOL_PATH"] for entry in told} == names(5000)
    assert len(told) == 5000
    assert keys(s3, bucket) == names(5000)
    assert not machine.journal("S3SPOOL_EVENT=log.dropped", after=mark)
    suppressed = machine.run("journalctl -u systemd-journald -q | grep -c Suppressed", check=False)
    assert suppressed.stdout.strip() == "0"
    assert s3.get_object(Bucket=bucket, Key="000007.dat")["Body"].read() == b"00000007" * 8
