"""Steps 3 to 5 of docs/tutorial.md, typed on a machine that has never seen s3spool."""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from support.waiting import eventually
from system.building import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

    from mypy_boto3_s3.client import S3Client

    from s3spool.demo.seaweed import Seaweed
    from system.machine import Machine

TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
CHECKOUT = "/root/checkout"
CONFIGURATION = "/etc/s3spool/s3spool.toml"


def commands(step: int) -> list[str]:
    """The lines after `$` of a step; root needs no sudo."""
    section = TUTORIAL.partition(f"\n## {step}. ")[2].partition("\n## ")[0]
    return [re.sub(r"\bsudo ", "", line) for line in re.findall(r"^\$ (.+)$", section, re.MULTILINE)]


def edit(machine: Machine, **values: str) -> None:
    """As with an editor: take the `#` away and fill in the value."""
    script = ";".join(f's|^#{key} = ""|{key} = "{value}"|' for key, value in values.items())
    machine.run(f"sed -i '{script}' {CONFIGURATION}")


def is_there(s3: S3Client, bucket: str, key: str) -> bool:
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError:
        return False
    return True


def test_tutorial_ends_in_a_monitored_service(
    machine: Machine, deb: Path, seaweed: Seaweed, s3: S3Client, bucket: str
) -> None:
    """A file is sent; a wrong secret pauses uploads and costs nothing; metrics and health answer."""
    machine.run("apt-get purge -y s3spool; rm -rf /etc/s3spool /var/lib/s3spool /var/spool/s3spool", check=False)
    keys = seaweed.environment()
    secret = f"aws_secret_access_key = {keys['AWS_SECRET_ACCESS_KEY']}"
    machine.write("/root/.aws/credentials", f"[default]\naws_access_key_id = {keys['AWS_ACCESS_KEY_ID']}\n{secret}\n")

    for command in commands(3):
        if command == "make deb":
            machine.write(f"{CHECKOUT}/dist/{deb.name}", deb.read_bytes())
        elif command.startswith("sudoedit "):
            edit(machine, bucket=bucket, endpoint_url=seaweed.endpoint_url, region="us-east-1")
        else:
            machine.run(command.replace("apt install", "apt-get install -y"), cwd=CHECKOUT)
    eventually(lambda: is_there(s3, bucket, "hello.txt"), timeout_s=60)

    machine.run("sed -i 's/^aws_secret_access_key = .*/aws_secret_access_key = wrong/' /etc/s3spool/credentials")
    for command in commands(4):
        machine.run(command)
    machine.wait_for("s3spool status | grep '^state *.*paused'")
    machine.run(f"sed -i 's/^aws_secret_access_key = .*/{secret}/' /etc/s3spool/credentials; systemctl restart s3spool")
    eventually(lambda: is_there(s3, bucket, "again.txt"), timeout_s=60)

    edit(machine, http_listen="127.0.0.1:9464")
    machine.run("systemctl restart s3spool")
    for command in commands(5):
        address = command.removeprefix("curl ")
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - the network is the host's
            assert answer.status == 200
    machine.run("systemctl disable --now s3spool")
