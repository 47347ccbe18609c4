"""A small Debian in a folder, made once by debootstrap and kept for the next run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "bash-completion",
    "ca-certificates",
    "dbus",
    "fish",
    "man-db",
    "procps",
    "python3-venv",
    "systemd",
    "systemd-sysv",
    "zsh",
)
TOOLS = ("debootstrap", "nsenter", "setpriv", "systemd-nspawn", "unshare")
_ANOTHER = "http://deb.debian.org/debian"


def missing() -> str:
    """Why no machine can be booted here; empty where it can."""
    if os.geteuid() != 0:
        return "booting a machine in a container takes root: sudo make test-system"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"{', '.join(absent)}: not found (Debian: apt install systemd-container debootstrap)" if absent else ""


def rootfs() -> Path:
    """Never booted itself: each session has its own layer above it. Remove the folder to have it made anew."""
    suite = _suite()
    recipe = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "s3spool-test"
    made = cache / f"{suite}-{recipe}"
    if not made.exists():
        making = cache / f"{suite}-{recipe}.{os.getpid()}"
        cache.mkdir(parents=True, exist_ok=True)
        include = f"--include={','.join(PACKAGES)}"
        command = ["debootstrap", "--variant=minbase", include, suite, str(making), _mirror(suite)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"debootstrap failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        making.rename(made)
    return made


def apt_settings() -> str:
    """The host's own way to its mirrors (proxies, certificates), for apt inside; read here, kept nowhere."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return "".join(
        f"{line}\n" for line in dump.splitlines() if line.startswith("Acquire::") and not line.endswith('"";')
    )


def _suite() -> str:
    """The host's release: the package is built there, and needs the very Python it was built with."""
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if not line.startswith("#") and "=" in line
    )
    return release.get("VERSION_CODENAME", "bookworm").strip('"') if release.get("ID") == "debian" else "bookworm"


def _mirror(suite: str) -> str:
    """Where the host's apt has this release from."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", f"Codename: {suite}"]
    sites = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return sites[0] if sites else _ANOTHER
