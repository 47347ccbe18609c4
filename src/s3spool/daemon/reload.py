"""SIGHUP: read the configuration again and apply what can change while the daemon runs."""

from __future__ import annotations

from typing import Any

import structlog
from msgspec.structs import replace

from s3spool.config import loader as configuration
from s3spool.config.loader import Config
from s3spool.daemon.components import filter_of, rule_action_of, rules_of
from s3spool.daemon.supervisor import Daemon
from s3spool.errors import ConfigError
from s3spool.failure.retry_policy import Policy

log = structlog.get_logger()


def reload(daemon: Daemon) -> None:
    """Apply what can change live; what cannot is named and stays, and a broken file changes nothing at all."""
    source = daemon.config.source
    try:
        if source is not None and source.is_fifo():
            # A pipe, say from the shell's <(...): who opens it again waits for a writer, and nobody is there.
            raise ConfigError(str(source), None, "is a pipe, which cannot be read again")
        new = configuration.load(source, overrides=daemon.overrides)
        configuration.check_directories(new)
    except ConfigError as exc:
        for error in exc.errors:
            log.error("config.refused", error=str(error))
        return
    live, refused = configuration.changed(daemon.config, new)
    for name in refused:
        log.error("config.refused", error=f"{name}: cannot change while the daemon runs; restart it", field=name)
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
    components.after.apply(new.after.action, new.after.archive_directory, rule_action_of(new))
    components.store.rules = rules_of(new)
    components.bandwidth.set_rate(new.upload.max_bandwidth)
    daemon.set_log_level(new.log.level)
    components.scan.want("reload")
    log.info("daemon.reloaded", changed=live, refused=refused)


def _merged(old: Config, new: Config, live: list[str]) -> Config:
    """The old configuration with the new values of `live`."""
    changes: dict[str, dict[str, Any]] = {}
    for name in live:
        if name == "rule":
            continue
        section, _, key = name.partition(".")
        changes.setdefault(section, {})[key] = getattr(getattr(new, section), key)
    sections = {section: replace(getattr(old, section), **values) for section, values in changes.items()}
    return replace(old, **sections, rules=new.rules)
