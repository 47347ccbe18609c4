"""packaging/Containerfile, step by step in a root of its own: no engine for containers is needed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from system.building import REPOSITORY
from system.rootfs import apt_settings, host_release, missing, rootfs

if TYPE_CHECKING:
    from s3spool.demo.seaweed import Seaweed

TEXT = (REPOSITORY / "packaging" / "Containerfile").read_text(encoding="utf-8")
UNPRIVILEGED = 10001


class Image(NamedTuple):
    root: Path
    environment: dict[str, str]
    command: list[str]


def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", "", TEXT).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word.isupper()]


def chroot(root: Path, command: str, environment: dict[str, str]) -> None:
    """Run a step of the build as root. Its mounts end with it."""
    script = 'mount --bind /proc "$1/proc"; mount --bind /dev "$1/dev"; exec chroot "$1" sh -c "$2"'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", str(root), command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The root after all steps. apt uses the host's mirrors; pip takes wheels that the host has collected."""
    if why_not := missing():
        pytest.skip(why_not)
    root = tmp_path_factory.mktemp("image") / "root"
    subprocess.run(["cp", "-a", rootfs(host_release()), root], check=True)
    (root / "etc/apt/apt.conf.d/99host").write_text(apt_settings())
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(root / "wheels")]
    subprocess.run([*pip, f"{REPOSITORY}[http]", "hatchling"], check=True)
    host = {name: value for name, value in os.environ.items() if "proxy" in name.lower()}
    host |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "DEBIAN_FRONTEND": "noninteractive"}
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    entry: list[str] = []
    for word, rest in instructions():
        if word == "RUN":
            chroot(root, rest, host | environment)
        elif word == "COPY":
            *sources, target = rest.split()
            place = root / target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            for source in sources:
                if (REPOSITORY / source).is_dir():
                    shutil.copytree(REPOSITORY / source, place)
                else:
                    place.mkdir(exist_ok=True)
                    shutil.copy(REPOSITORY / source, place)
        elif word == "ENV":
            environment |= dict(setting.split("=", 1) for setting in shlex.split(rest))
        elif word in {"ENTRYPOINT", "CMD"}:
            entry += re.findall(r'"([^"]*)"', rest)
        else:
            assert word in {"FROM", "USER", "WORKDIR", "VOLUME"}
    return Image(root, environment, entry)


def test_image_is_not_run_as_root() -> None:
    """The user of the image exists with the number that docs/howto.md names."""
    assert ("USER", "s3spool") in instructions()
    assert f"--uid {UNPRIVILEGED} " in TEXT
    assert f"user {UNPRIVILEGED}" in (REPOSITORY / "docs" / "howto.md").read_text(encoding="utf-8")


def test_image_uploads_from_a_read_only_root(image: Image, tmp_path: Path, seaweed: Seaweed, bucket: str) -> None:
    """Without capabilities, as user 10001, with two writable volumes, a file is uploaded and removed."""
    volumes = [tmp_path / "spool", tmp_path / "state"]
    for volume in volumes:
        volume.mkdir()
        os.chown(volume, UNPRIVILEGED, UNPRIVILEGED)
    (volumes[0] / "hello.txt").write_text("hello")
    os.chown(volumes[0] / "hello.txt", UNPRIVILEGED, UNPRIVILEGED)
    settings = {"S3SPOOL_DESTINATION__BUCKET": bucket, "S3SPOOL_AFTER__ACTION": "delete"}
    script = (
        'root=$1; mount --bind "$1" "$1"; mount --bind "$2" "$1/spool"; mount --bind "$3" "$1/state"; shift 3; '
        'mount -t proc proc "$root/proc"; mount --bind /dev "$root/dev"; mount -o remount,bind,ro "$root"; cd "$root"; '
        f'exec /usr/sbin/chroot "$root" setpriv --reuid {UNPRIVILEGED} --regid {UNPRIVILEGED} --clear-groups '
        '--bounding-set=-all --no-new-privs -- "$@"'
    )
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", str(image.root)]
    words += [*map(str, volumes), *image.command, "--once"]
    environment = image.environment | seaweed.environment() | settings | {"HOME": "/state"}

    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    assert list(volumes[0].iterdir()) == []
    client = seaweed.client()
    assert client.get_object(Bucket=bucket, Key="hello.txt")["Body"].read() == b"hello"
    client.close()
