"""The systemd units as text: the shipped ones, and what an installation adds to them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from s3spool.errors import S3SpoolError
from s3spool.logs.text import shown

_AUTHOR = "# Written by `s3spool service install`"
_MADE = "# made: "
NOTIFY_RELOAD = 253  # the first systemd that knows Type=notify-reload
_SPOOL = Path("/var/spool")
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # what ProtectHome= hides
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - what PrivateTmp= replaces
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


class Service(NamedTuple):
    """One service and its paths, as the shipped units and control/client.py name them."""

    name: str  #: of the instance; empty for s3spool.service
    unit: str
    template: str  #: the shipped file
    config: Path
    credentials: Path
    folder: Path
    state: Path


def service_of(name: str) -> Service:
    """The service of an instance, or of s3spool.service for "". Raises S3SpoolError for an impossible name."""
    if name and (not _NAME.fullmatch(name) or name == "s3spool"):
        raise S3SpoolError(f"--name {shown(name)}: must be letters, digits, _ and -, at most 64, and not s3spool")
    base = f"s3spool-{name}" if name else "s3spool"
    return Service(
        name,
        unit=f"s3spool@{name}.service" if name else "s3spool.service",
        template="s3spool@.service" if name else "s3spool.service",
        config=Path(f"/etc/s3spool/{name or 's3spool'}.toml"),
        credentials=Path("/etc/s3spool", f"{name}.credentials" if name else "credentials"),
        folder=_SPOOL / base,
        state=Path("/var/lib") / base,
    )


def shipped(name: str) -> str:
    """A file of systemd/, or the sample configuration: from the wheel, else from the checkout."""
    package = Path(__file__).parents[1]
    checkout = package.parents[1]
    places = (package / "units" / name, checkout / "systemd" / name, checkout / "packaging" / name)
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise S3SpoolError(f"{places[0]}: is missing from this installation of s3spool; install it again")


def sample(folder: Path) -> str:
    """The configuration to start from; only the folder is set."""
    value = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    return re.sub(
        r"^#directory = .*$", lambda _: f'directory = "{value}"', shipped("s3spool.toml"), count=1, flags=re.MULTILINE
    )


def for_systemd(text: str, version: int) -> str:
    """From systemd 253 on, `systemctl reload` sends SIGHUP itself and waits until the daemon has reloaded."""
    if version < NOTIFY_RELOAD:
        return text
    text = re.sub(r"(?:^#.*\n)*^ExecReload=.*\n", "", text, flags=re.MULTILINE)
    return text.replace("\nType=notify\n", "\nType=notify-reload\n")


def whole(service: Service, program: Path, user: str, group: str, folder: Path, *, systemd_version: int) -> str:
    """The unit for a program that no package has installed: the shipped one; the last value of a setting counts."""
    text = for_systemd(shipped(service.template), systemd_version)
    lines = (
        text[text.index("[Unit]") :],
        "# The settings of this installation.",
        "[Unit]",
        "Documentation=",  # only the package has manuals
        f"RequiresMountsFor={_quoted(folder)}",
        "[Service]",
        "ExecStart=",
        f"ExecStart={_quoted(program).replace('$', '$$')} run --config {service.config}",
        f"User={user}",
        f"Group={group}",
        *_access(folder),
    )
    return "\n".join(lines) + "\n"


def drop_in(folder: Path) -> str:
    """The additions to a unit that a package has installed."""
    return "\n".join(["[Service]", *_access(folder), ""])


def _access(folder: Path) -> list[str]:
    """The settings without which the service cannot see `folder`, or cannot remove files from it."""
    if _below(folder, _HOMES):
        return ["ProtectHome=tmpfs", f"BindPaths={_quoted(folder)}"]  # all other homes stay hidden
    return [] if _below(folder, (_SPOOL,)) else [f"ReadWritePaths={_quoted(folder)}"]


def with_notes(text: str, made: dict[Path, str]) -> str:
    """`text` below a head that lists the files (with their digest) and directories that the installation made."""
    lines = (f"{_MADE}{f'file {digest}' if digest else 'directory -'} {path}" for path, digest in made.items())
    return "\n".join([f"{_AUTHOR}, removed by `s3spool service uninstall`. Change it with a drop-in.", *lines, text])


def notes(text: str) -> dict[Path, str] | None:
    """The reverse of `with_notes`; None for a text of another author."""
    if not text.startswith(_AUTHOR):
        return None
    found = [line.removeprefix(_MADE).split(" ", 2) for line in text.splitlines() if line.startswith(_MADE)]
    return {Path(path): digest.strip("-") for _, digest, path in found}


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def hidden(path: Path) -> str:
    """The setting that hides the path from the service; empty if none does."""
    if _below(path, _HOMES):
        return "in a home directory (ProtectHome=)"
    return "in a temporary directory (PrivateTmp=)" if _below(path, _TEMPORARY) else ""


def _below(path: Path, places: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def _quoted(path: Path) -> str:
    """As systemd.syntax(7) reads it back."""
    text = str(path).replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
