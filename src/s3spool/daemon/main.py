"""`s3spool run`: from the command line to a running daemon, and its exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence

import structlog

from s3spool.config import loader as configuration
from s3spool.config.directories import check_directories
from s3spool.config.schema import Config
from s3spool.daemon.limits import affordable_workers, raise_open_files
from s3spool.errors import S3SpoolError
from s3spool.ledger.files import become_owner

SWITCH_S = 0.001  # the longest time that a busy thread keeps the GIL from another thread
GC_OBJECTS = 10_000  # between two collections; the default of 700 takes 2 % of the CPU time, and finds nothing
PARKED = 3  # the exit code of `run --once` if some files could not be sent


def run(
    config: Config, overrides: Mapping[str, object] = {}, warnings: Sequence[str] = (), *, once: bool = False
) -> int:
    """Run until a signal, or with `once` until all files were tried; return the exit code.

    `overrides`: the command line's settings, for a reload; `warnings`: about the source of the configuration. Raises
    ConfigError before any file is changed, or another S3SpoolError.
    """
    configuration.require_bucket(config)
    became = become_owner(config.state.directory)
    check_directories(config)

    from s3spool.daemon import memory  # noqa: PLC0415 - after the errors that take one line
    from s3spool.logs import log_thread as logs  # noqa: PLC0415 - the same

    raise_open_files(config.upload.workers)
    memory.keep_few_heaps()
    memory.hide()
    writer = logs.configure(config.log.format, config.log.level)
    if writer.fallback:
        structlog.get_logger().warning("systemd.missing", reason=writer.fallback)
    if became:
        structlog.get_logger().info("daemon.user_changed", reason=became)
    for warning in warnings:
        structlog.get_logger().warning("config.untrusted", reason=warning)
    workers = _affordable(config.upload.workers)
    try:
        from s3spool.daemon.handlers import handlers  # noqa: PLC0415 - boto3 and pycurl are heavy
        from s3spool.daemon.http_service import http_server  # noqa: PLC0415 - the same
        from s3spool.daemon.reload import reload  # noqa: PLC0415 - the same
        from s3spool.daemon.supervisor import Daemon  # noqa: PLC0415 - the same
        from s3spool.s3.plain_http import DANGER, beyond_loopback  # noqa: PLC0415 - the same

        daemon = Daemon(
            config,
            writer,
            overrides=overrides,
            workers=workers,
            handlers=handlers,
            reload=reload,
            http_server=http_server,
            once=once,
        )
    except S3SpoolError:
        writer.close(1.0)
        raise
    except OSError as exc:
        writer.close(1.0)
        raise S3SpoolError(f"{exc.filename or 'the daemon cannot start'}: {exc.strerror}") from exc
    where = daemon.components.store.endpoint.url
    if beyond_loopback(where):
        structlog.get_logger().warning("destination.unencrypted", endpoint=where, hint=DANGER)
    structlog.get_logger().info("daemon.after_upload", outcome=config.after_upload(), action=config.after.action)
    writer.show_summary(daemon.summary)
    # These objects live as long as the process: the garbage collector need not visit them.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 10, 10)
    memory.give_back()
    sys.setswitchinterval(SWITCH_S)
    try:
        code = daemon.run()
    except S3SpoolError:
        writer.close(1.0)
        raise
    return PARKED if daemon.left and not code else code


def _affordable(wanted: int) -> int:
    """The number of workers that may start; logs a warning if it is smaller."""
    workers = affordable_workers(wanted)
    if workers < wanted:
        reason = "the limit of open files is too low: raise LimitNOFILE= in the unit (ulimit -n)"
        structlog.get_logger().warning("workers.limited", workers=workers, wanted=wanted, reason=reason)
    return workers
