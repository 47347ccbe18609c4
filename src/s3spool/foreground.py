"""`s3spool run`: from the command line to a running daemon, and its exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog

from s3spool import config as configuration
from s3spool.errors import S3SpoolError

SWITCH_S = 0.001  # a thread that comes back from the kernel waits so long at most for a busy one


def run_daemon(config_file: Path | None, overrides: Mapping[str, object]) -> int:
    """Blocks until a signal. Raises ConfigError before anything is touched; other errors are logged."""
    config = configuration.load(config_file, overrides=overrides)
    configuration.require_bucket(config)
    configuration.check_directories(config)

    from s3spool.service import logs  # noqa: PLC0415 - after what may still fail in one line

    writer = logs.configure(config.log.format, config.log.level)
    log = structlog.get_logger()
    if writer.fallback:
        log.warning("systemd.missing", reason=writer.fallback, hint="pip install 's3spool[systemd]'")
    try:
        from s3spool.daemon import Daemon  # noqa: PLC0415 - boto3 and pycurl are heavy

        daemon = Daemon(config, writer, overrides=overrides)
    except S3SpoolError:
        writer.close(1.0)
        raise
    # What stands now stands for good: keep it out of the collector's way.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)
    return daemon.run()
