"""SIGHUP: read the configuration again and apply what can change while the daemon runs."""

from __future__ import annotations

from typing import Any

import structlog
from msgspec.structs import replace

from s3spool.config import loader as configuration
from s3spool.config.loader import Config
from s3spool.daemon.components import filter_of
from s3spool.daemon.supervisor import Daemon
from s3spool.errors import ConfigError
from s3spool.failure.retry_policy import Policy

log = structlog.get_logger()


def reload(daemon: Daemon) -> None:
    """Apply the keys that can change live, and name those that need a restart; a broken file changes nothing."""
    source = daemon.config.source
    try:
        if source is not None and source.is_fifo():
            # A pipe, say from the shell's <(...): opening it again would wait for a writer that is gone.
            raise ConfigError(str(source), None, "is a pipe, which cannot be read again")
        new = configuration.load(source, overrides=daemon.overrides, search=False)
        configuration.check_directories(new)
    except ConfigError as exc:
        for error in exc.errors:
            log.error("config.refused", error=str(error))
        return
    live, restart_needed = configuration.changed(daemon.config, new)
    old = daemon.config
    daemon.config = new = _merged(old, new, live)
    components = daemon.components
    components.names = filter_of(new)
    components.scan.names = components.names
    if daemon.watch_manager.watch is not None:
        daemon.watch_manager.watch.names = components.names
    retry = new.retry
    components.retry.policy = Policy(initial_s=retry.initial_s, max_s=retry.max_s, max_attempts=retry.max_attempts)
    components.breaker.initial_s, components.breaker.max_s = retry.initial_s, retry.max_s
    components.after.action, components.after.archive = new.after.action, new.after.archive_directory
    components.bandwidth.set_rate(new.upload.max_bandwidth)
    daemon.set_log_level(new.log.level)
    components.scan.want("reload")
    say = log.warning if restart_needed else log.info
    say("daemon.reloaded", changed=live, restart_needed=restart_needed)


def _merged(old: Config, new: Config, live: list[str]) -> Config:
    """The old configuration with the new values of `live`."""
    changes: dict[str, dict[str, Any]] = {}
    for name in live:
        section, _, key = name.partition(".")
        changes.setdefault(section, {})[key] = getattr(getattr(new, section), key)
    sections = {section: replace(getattr(old, section), **values) for section, values in changes.items()}
    return replace(old, **sections)
