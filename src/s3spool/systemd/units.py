"""The systemd units as text: the shipped ones, and what an installation changes in them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from s3spool.errors import S3SpoolError

MARK = (
    "# Written by `s3spool service install`; `s3spool service uninstall` takes it back. Changes belong into drop-ins."
)
_MADE = "# made: "
NOTIFY_RELOAD = 253  # the first systemd that knows Type=notify-reload
_SPOOL = Path("/var/spool")
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # what ProtectHome= hides
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - what PrivateTmp= replaces
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service, by the names that the units and control_client.py give to what belongs to it."""

    name: str = ""  #: the instance, empty for s3spool.service itself

    @property
    def unit(self) -> str:
        return f"s3spool@{self.name}.service" if self.name else "s3spool.service"

    @property
    def template(self) -> str:
        """The file it comes from."""
        return "s3spool@.service" if self.name else "s3spool.service"

    @property
    def config(self) -> Path:
        return Path(f"/etc/s3spool/{self.name or 's3spool'}.toml")

    @property
    def credentials(self) -> Path:
        return Path(f"/etc/s3spool/{self.name}.credentials" if self.name else "/etc/s3spool/credentials")

    @property
    def folder(self) -> Path:
        return _SPOOL / (f"s3spool-{self.name}" if self.name else "s3spool")

    @property
    def state(self) -> Path:
        return Path(f"/var/lib/s3spool-{self.name}" if self.name else "/var/lib/s3spool")


@dataclass(frozen=True, slots=True)
class Made:
    """Something that an installation has made, and that an uninstallation may take back."""

    kind: str  #: "directory" or "file"
    path: Path
    digest: str = ""  #: of a file: it is taken back only if nobody has changed it


def shipped(name: str) -> str:
    """A file of systemd/, or the sample of the configuration: from the wheel, else from the checkout."""
    package = Path(__file__).parents[1]
    checkout = package.parents[1]
    places = (package / "units" / name, checkout / "systemd" / name, checkout / "packaging" / name)
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise S3SpoolError(f"{places[0]}: is missing from this installation of s3spool; install it again")


def sample(folder: Path) -> str:
    """The configuration to start from, with every key commented out but the folder."""
    value = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    return re.sub(
        r"^#directory = .*$", lambda _: f'directory = "{value}"', shipped("s3spool.toml"), count=1, flags=re.MULTILINE
    )


def for_systemd(text: str, version: int) -> str:
    """From systemd 253 on `systemctl reload` is the daemon's own signal, and waits until it has been dealt with."""
    if version < NOTIFY_RELOAD:
        return text
    return _set(_drop(text, ["ExecReload"]), "Type", "notify-reload")


def whole(
    service: Service, *, program: Path, user: str, group: str, folder: Path, made: list[Made], systemd: int = 0
) -> str:
    """The unit for a program that no package has installed."""
    text = for_systemd(shipped(service.template), systemd)
    text = text[text.index("[Unit]") :]
    text = re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE)  # manuals come with the package alone
    text = _set(text, "ExecStart", f"{_quoted(program).replace('$', '$$')} run --config {service.config}")
    text = _set(_set(text, "User", user), "Group", group)
    text = _set(text, "RequiresMountsFor", f"{_quoted(folder)} {service.state}")
    lines = access(folder)
    if lines:
        text = _drop(text, [line.partition("=")[0] for line in lines if not line.startswith("ReadWritePaths=")])
        added = "\n".join(["# The folder, which is elsewhere than usual.", *lines])
        text = text.replace("\n# What it may ask of the kernel\n", f"{added}\n\n# What it may ask of the kernel\n", 1)
    return f"{_head(made)}\n{text}"


def drop_in(folder: Path, made: list[Made]) -> str:
    """What is to be added to a unit that a package has installed."""
    lines = access(folder)
    return "\n".join([_head(made), "[Service]", *lines, ""])


def access(folder: Path) -> list[str]:
    """The settings without which the service would not see `folder`, or could not remove files from it."""
    if _below(folder, _HOMES):
        # All other homes stay hidden: what is bound shows in an empty /home.
        return ["ProtectHome=tmpfs", f"BindPaths={_quoted(folder)}"]
    if _below(folder, (_SPOOL,)):
        return []
    return [f"ReadWritePaths={_quoted(folder)}"]


def made_by(text: str) -> list[Made] | None:
    """What an installation noted in its unit or drop-in; None for a text that is not ours."""
    if not text.startswith(MARK):
        return None
    found = [line.removeprefix(_MADE).split(" ", 2) for line in text.splitlines() if line.startswith(_MADE)]
    return [Made(kind, Path(path), "" if digest == "-" else digest) for kind, digest, path in found]


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def hidden(path: Path) -> str:
    """Which setting hides the path from the service; empty if none does."""
    if _below(path, _HOMES):
        return "in a home directory (ProtectHome=)"
    return "in a temporary directory (PrivateTmp=)" if _below(path, _TEMPORARY) else ""


def _below(path: Path, places: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def _head(made: list[Made]) -> str:
    return "\n".join([MARK, *(f"{_MADE}{each.kind} {each.digest or '-'} {each.path}" for each in made)])


def _set(text: str, key: str, value: str) -> str:
    changed, count = re.subn(rf"^{key}=.*$", lambda _: f"{key}={value}", text, flags=re.MULTILINE)
    if count != 1:
        raise S3SpoolError(f"the shipped unit has {count} lines {key}=, not one; install s3spool again")
    return changed


def _drop(text: str, keys: list[str]) -> str:
    """Without these settings and the comments right above them."""
    for key in keys:
        text = re.sub(rf"(?:^#.*\n)*^{key}=.*\n", "", text, flags=re.MULTILINE)
    return text


def _quoted(path: Path) -> str:
    """As systemd.syntax(7) reads it back."""
    text = str(path).replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
