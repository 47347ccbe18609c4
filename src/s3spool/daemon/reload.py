"""SIGHUP: read the configuration again and apply what can change while the daemon runs."""

from __future__ import annotations

from typing import Any

import structlog
from msgspec.structs import replace

from s3spool.config import loader as configuration
from s3spool.config.directories import check_directories
from s3spool.config.schema import Config, changed
from s3spool.daemon.supervisor import Daemon
from s3spool.errors import ConfigError

log = structlog.get_logger()


def reload(daemon: Daemon) -> None:
    """Apply the keys that can change live, and name those that need a restart; a broken file changes nothing."""
    source = daemon.config.source
    try:
        if source is not None and source.is_fifo():
            # A pipe, say from the shell's <(...): opening it again would wait for a writer that is gone.
            raise ConfigError(str(source), None, "is a pipe, which cannot be read again")
        new = configuration.load(source, overrides=daemon.overrides, search=False)
        check_directories(new)
    except ConfigError as exc:
        for error in exc.errors:
            log.error("config.refused", error=str(error))
        return
    live, restart_needed = changed(daemon.config, new)
    daemon.apply(_merged(daemon.config, new, live))
    say = log.warning if restart_needed else log.info
    say("daemon.reloaded", changed=live, restart_needed=restart_needed)


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
