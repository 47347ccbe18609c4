"""SIGHUP: read the configuration again and apply what can change while the daemon runs."""

from __future__ import annotations

from typing import Any

import structlog
from msgspec.structs import replace

from s3spool.config import loader as configuration
from s3spool.config.loader import Config
from s3spool.daemon.supervisor import Daemon
from s3spool.errors import ConfigError

log = structlog.get_logger()


def reload(daemon: Daemon) -> None:
    """Apply the settings that can change; log the others as refused. A file with errors changes nothing."""
    source = daemon.config.source
    try:
        if source is not None and source.is_fifo():
            # For example from the shell's <(...): opening it again would wait for a writer for ever.
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
    daemon.apply(_merged(daemon.config, new, live))
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
