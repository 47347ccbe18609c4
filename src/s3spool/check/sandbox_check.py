"""`s3spool service check`: runs the check instead of the daemon, inside the sandbox of the unit."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from s3spool.check.result import CheckResult, warning
from s3spool.errors import S3SpoolError
from s3spool.systemd.units import Service

_RUN = Path("/run/systemd/system")
_CANNOT_BE_SET_UP = range(200, 246)  # systemd's own exit codes, systemd.exec(5)


def run_as_service(service: Service) -> tuple[str, int]:
    """The output of the check and its exit code. The daemon may run meanwhile. Raises S3SpoolError."""
    if os.geteuid() != 0:
        raise S3SpoolError("takes root, to start a process as the service's user: run it with sudo")
    shown = _systemctl("cat", "--no-pager", service.unit)
    if shown.returncode:
        raise S3SpoolError(f"{service.unit}: there is no such unit; make it with `s3spool service install`")
    name = f"s3spool-check-{os.getpid()}{f'@{service.name}' if service.name else ''}.service"
    unit, output = _RUN / name, Path("/run") / f"{name}.txt"
    unit.write_text(check_unit(shown.stdout, output), encoding="utf-8")
    try:
        _systemctl("daemon-reload")
        started = _systemctl("start", name)
        code = int(_systemctl("show", "--value", "-p", "ExecMainStatus", name).stdout or 0)
        text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
        if started.returncode and (code in _CANNOT_BE_SET_UP or not text):
            said = " ".join(started.stderr.split())
            raise S3SpoolError(f"{service.unit}: systemd could not start it ({code}); journalctl -u {name}: {said}")
        return text, code
    finally:
        unit.unlink()
        output.unlink(missing_ok=True)
        _systemctl("reset-failed", name)
        _systemctl("daemon-reload")


def secret_is_private(credentials: Path) -> CheckResult | None:
    """A warning if other users may read the secret; only root can tell."""
    try:
        status = credentials.stat()
    except OSError:
        return None  # a machine with a role has no such file
    if status.st_uid == 0 and not status.st_mode & 0o077:
        return None
    return warning(
        "credentials",
        f"users other than root may read {credentials}: chown root: {credentials} && chmod 600 {credentials}",
    )


def check_unit(shown: str, output: Path) -> str:
    """The unit as `systemctl cat` shows it, drop-ins included, with the check instead of the daemon."""
    commands = re.findall(r"^ExecStart=(.+)$", shown, re.MULTILINE)
    if not commands or " run " not in commands[-1]:
        raise S3SpoolError("the unit has no ExecStart= of the form `s3spool run ...`: run `s3spool check` instead")
    check = " check ".join(commands[-1].rsplit(" run ", 1))
    # The last settings count. The runtime directory must outlive the check, because the daemon uses it, too.
    changes = (
        "[Service]",
        "Type=oneshot",
        "Restart=no",
        "WatchdogSec=0",
        "RuntimeDirectoryPreserve=yes",
        "ExecStartPre=",
        "ExecStartPost=",
        "ExecStart=",
        f"ExecStart={check}",
        f"StandardOutput=truncate:{output}",
        f"StandardError=append:{output}",
    )
    return "\n".join([shown, *changes, ""])


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemctl", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - constant words
