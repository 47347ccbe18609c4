"""A service of the installed package, as its operator handles it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from support.daemon import to_toml
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from system.machine import Entry, Machine

PERSON = "alice"  #: in the group s3spool, nothing else
STRANGER = "mallory"
ACCESS_KEY, SECRET_KEY = "AKTEST", "test-secret"
CREDENTIALS = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"

# One file after the other, each complete under another name before it appears; as cheap as it gets.
_DROP_MANY = """
import os, sys
folder, first, count, size = sys.argv[1], *map(int, sys.argv[2:5])
for number in range(first, first + count):
    hidden = f"{folder}/.{number}.part"
    with open(hidden, "wb") as file:
        file.write(f"{number:08}".encode() * (size // 8))
    os.rename(hidden, f"{folder}/{number:06}.dat")
"""


class Service:
    """`instance` "" is s3spool.service, "two" is s3spool@two.service."""

    def __init__(self, machine: Machine, instance: str = "") -> None:
        self.machine = machine
        self.unit = f"s3spool@{instance}.service" if instance else "s3spool.service"
        self.config_file = f"/etc/s3spool/{instance or 's3spool'}.toml"
        self.folder = f"/var/spool/s3spool-{instance}" if instance else "/var/spool/s3spool"
        self.credentials_file = f"/etc/s3spool/{instance}.credentials" if instance else "/etc/s3spool/credentials"
        self.since = machine.mark()  #: what was logged earlier belongs to other tests
        self.config: dict[str, dict[str, Any]] = {}

    def configure(self, endpoint_url: str, bucket: str, **sections: Mapping[str, Any]) -> None:
        """Write the file; the defaults here only make tests quick."""
        self.config = {
            "watch": {"directory": self.folder, "settle_s": 0.2},
            "destination": {
                "bucket": bucket,
                "endpoint_url": endpoint_url,
                "region": "us-east-1",
                "addressing_style": "path",
            },
            "retry": {"initial_s": 0.2, "max_s": 1},
        }
        self.change(**sections)

    def change(self, **sections: Mapping[str, Any]) -> None:
        for name, options in sections.items():
            self.config.setdefault(name, {}).update(options)
        self.machine.write(self.config_file, to_toml(self.config))

    def credentials(self) -> None:
        self.machine.write(self.credentials_file, CREDENTIALS, mode=0o600)

    def drop_in(self, text: str, name: str = "test") -> None:
        """`systemctl edit`; an empty text takes it back."""
        path = f"/etc/systemd/system/{self.unit}.d/{name}.conf"
        if text:
            self.machine.write(path, text)
        else:
            self.machine.path(path).unlink(missing_ok=True)
        self.machine.run("systemctl daemon-reload")

    def systemctl(self, verb: str, *, check: bool = True) -> str:
        done = self.machine.run(f"systemctl {verb} {shlex.quote(self.unit)}", check=check)
        return done.stdout + done.stderr

    def start(self) -> None:
        """A start that fails says why."""
        done = self.machine.run(f"systemctl restart {shlex.quote(self.unit)}", check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.machine.out(f'journalctl -n 30 -o short -u {self.unit}')}"

    def cli(self, command: str, *, user: str = "root", check: bool = True) -> str:
        return self.machine.run(f"s3spool {command}", user=user, check=check).stdout

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        status: dict[str, Any] = json.loads(self.cli(f"status --json --config {self.config_file}"))
        return status

    def show(self, name: str) -> str:
        return self.machine.show(self.unit, name)[name]

    @property
    def pid(self) -> int:
        """As the machine counts."""
        return int(self.show("MainPID"))

    @property
    def status_text(self) -> str:
        return self.show("StatusText")

    def state(self) -> tuple[str, str]:
        shown = self.machine.show(self.unit, "ActiveState", "SubState")
        return shown["ActiveState"], shown["SubState"]

    def events(self, name: str, *, after: float = 0.0, **fields: str) -> list[Entry]:
        matches = [f"S3SPOOL_{field.upper()}={value}" for field, value in fields.items()]
        return self.machine.journal(f"S3SPOOL_EVENT={name}", *matches, after=after or self.since, unit=self.unit)

    def wait_event(self, name: str, *, after: float = 0.0, timeout_s: float = 60.0, **fields: str) -> Entry:
        found = eventually(
            lambda: self.events(name, after=after, **fields), timeout_s=timeout_s, message=f"{name} {fields}"
        )
        return found[0]

    def wait_restarted(self, old_pid: int, *, timeout_s: float = 90.0) -> int:
        """Until systemd has started another process, and that is ready."""

        def restarted() -> int:
            shown = self.machine.show(self.unit, "ActiveState", "MainPID")
            pid = int(shown["MainPID"])
            return pid if shown["ActiveState"] == "active" and pid not in {0, old_pid} else 0

        return eventually(restarted, timeout_s=timeout_s, message=f"{self.unit} restarted")

    def drop(self, name: str, content: str = "content", *, user: str = PERSON) -> Path:
        """A person's file, complete under another name before it appears."""
        target = shlex.quote(f"{self.folder}/{name}")
        hidden = shlex.quote(f"{self.folder}/.{name}.part")
        self.machine.run(f"cat >{hidden} && mv {hidden} {target}", user=user, stdin=content)
        return self.machine.path(f"{self.folder}/{name}")

    def drop_many(self, count: int, *, first: int = 0, size: int = 64, user: str = PERSON) -> None:
        """000000.dat and so on; each content tells its file."""
        command = f"python3 - {self.folder} {first} {count} {size}"
        self.machine.run(command, user=user, stdin=_DROP_MANY)

    def empty(self) -> None:
        self.machine.run(f"find {self.folder} -mindepth 1 -delete")


def names(count: int, *, first: int = 0) -> set[str]:
    """What `drop_many` calls its files."""
    return {f"{number:06}.dat" for number in range(first, first + count)}
