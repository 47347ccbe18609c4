"""Where a package is built and judged: on the host for its own release, else in a root of the tested release."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from system.rootfs import build_root, host_release, release

REPOSITORY = Path(__file__).parents[2]
LOCKS = tuple(REPOSITORY / "packaging" / name for name in ("build.lock", "requirements.lock"))
# The mounts and the layer are gone with the command, however that ends.
_ENTER = """
layer=$1 root=$2
shift 2
mount -t tmpfs -o size=4g,mode=755 s3spool-build "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
mount -t overlay -o "lowerdir=$root,upperdir=$layer/upper,workdir=$layer/work" s3spool-build "$layer/root"
while [ "$1" != -- ]; do
    mkdir -p "$layer/root$1"
    mount --bind "$1" "$layer/root$1"
    shift
done
shift
exec chroot "$layer/root" "$@"
"""


class Builder:
    """Has the Python, the compiler and the checkers of the tested release."""

    def __init__(self, home: Path) -> None:
        """`home` is an empty folder on the host: for layers, and for what pip in a root is given."""
        self._home = home
        self._root = Path("/") if release() == host_release() else build_root(release())
        if self._on_host:
            return
        done = download(*LOCKS, python=self.python, machine=platform.machine(), target=home / "wheels")
        assert done.returncode == 0, done.stderr[-3000:]

    @property
    def python(self) -> str:
        """Its version, as `3.11`."""
        return (self._root / "usr/bin/python3").readlink().name.removeprefix("python")

    def command(self, *words: str | Path, shared: tuple[Path, ...]) -> list[str]:
        """The words, and before them the way into the root; it has the `shared` folders under the same names."""
        if self._on_host:
            return [str(word) for word in words]
        layer = tempfile.mkdtemp(prefix="layer-", dir=self._home)
        places = map(str, (Path("/proc"), Path("/dev"), REPOSITORY, self._home, *shared))
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _ENTER, "sh", layer, str(self._root)]
        return [*enter, *places, "--", *map(str, words)]

    def environment(self) -> dict[str, str]:
        """In a root pip asks no package index: it has what the host's pip has found."""
        if self._on_host:
            return dict(os.environ)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        owner = os.environ.get("SUDO_UID", "")  # git asks for it
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self._home / "wheels")}
        return {"PATH": path, "LANG": "C.UTF-8", "SUDO_UID": owner} | pip

    def run(self, *words: str | Path, shared: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
        """Both outputs as one."""
        return subprocess.run(
            self.command(*words, shared=shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=self.environment(),
        )

    @property
    def _on_host(self) -> bool:
        return self._root == Path("/")


def download(*locks: Path, python: str, machine: str, target: Path) -> subprocess.CompletedProcess[str]:
    """The locked releases for that Python and machine: wheels, and the source of the one that has none."""
    machines = [f"--platform=manylinux_{glibc}_{machine}" for glibc in ("2_17", "2_28", "2_34")]
    wanted = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-binary=systemd-python"]
    where = [f"--python-version={python}", f"--dest={target}", *(f"--requirement={lock}" for lock in locks)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet"]
    return subprocess.run([*pip, *wanted, *machines, *where], capture_output=True, text=True, check=False)
