"""Small Debians in folders, each made once by debootstrap and kept for the next run."""

from __future__ import annotations

import hashlib
import os
import re
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
CONTROL = Path(__file__).parents[2] / "packaging/debian/control"
TOOLS = ("debootstrap", "nsenter", "setpriv", "systemd-nspawn", "unshare")
_ANOTHER = "http://deb.debian.org/debian"


def missing() -> str:
    """Why no machine can be booted here; empty where it can."""
    if os.geteuid() != 0:
        return "booting a machine in a container takes root: sudo make test-system"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"{', '.join(absent)}: not found (Debian: apt install systemd-container debootstrap)" if absent else ""


def release() -> str:
    """The Debian that is tested: the host's, or what `make test-system RELEASE=` names."""
    return os.environ.get("SYSTEM_TESTS_RELEASE") or host_release()


def host_release() -> str:
    """As Debian calls it; bookworm where the host is no Debian."""
    lines = Path("/etc/os-release").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if not line.startswith("#") and "=" in line)
    return said.get("VERSION_CODENAME", "bookworm").strip('"') if said.get("ID") == "debian" else "bookworm"


def rootfs(suite: str) -> Path:
    """Never booted itself: each session has its own layer above it. Remove the folder to have it made anew."""
    return _made(suite, PACKAGES)


def build_root(suite: str) -> Path:
    """What builds and judges a package, and never runs it."""
    wanted = CONTROL.read_text().partition("\nBuild-Depends:\n")[2].partition("\nStandards-Version")[0]
    names = re.findall(r"(?m)^ ([\w.+-]+)", wanted.replace("debhelper-compat", "debhelper"))
    # debootstrap knows no virtual packages: a library of lintian depends on perl-openssl-abi-3.
    return _made(suite, ("build-essential", "lintian", "perl-openssl-defaults", *names))


def _made(suite: str, packages: tuple[str, ...]) -> Path:
    recipe = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "s3spool-test"
    made = cache / f"{suite}-{recipe}"
    if not made.exists():
        making = cache / f"{suite}-{recipe}.{os.getpid()}"
        cache.mkdir(parents=True, exist_ok=True)
        include = f"--include={','.join(packages)}"
        command = ["debootstrap", "--variant=minbase", include, suite, str(making), _mirror()]
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


def _mirror() -> str:
    """Where the host's apt has its release from; a mirror has the others too."""
    wanted = ["Created-By: Packages", f"Codename: {host_release()}"]
    command = ["apt-get", "indextargets", "--format", "$(SITE)", *wanted]
    sites = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return sites[0] if sites else _ANOTHER
