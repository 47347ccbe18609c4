"""Which configuration a command means, and what it says of a daemon whose file is broken."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from s3spool.config import loader
from s3spool.config.schema import OPTIONS, Config
from s3spool.errors import ConfigError

VARIABLE = "S3SPOOL_CONFIG"
_STATE_BASE, _RUNTIME_BASE = Path("/var/lib"), Path("/run")  # of StateDirectory= and RuntimeDirectory= in a unit
_PLACES = ("state.directory", "service.control_socket")  # enough to reach a running daemon


def named(config_file: Path | None, name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file that --config, S3SPOOL_CONFIG or --name means, in this order; None: a file has to be located."""
    variable = environ.get(VARIABLE, "")
    if config_file or variable:
        return config_file or Path(variable)
    if "/" in name:
        raise ConfigError("--name", name, "must be the name of a file in /etc/s3spool, without .toml")
    return loader.SYSTEM_FILE.with_name(f"{name}.toml") if name else None


def as_the_unit_has_it(config: Config, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration with state and socket where the unit of a system configuration has them.

    A person's shell lacks the unit's variables. Keys that the file or a variable sets stay as they are.
    """
    unit = _environment_of_unit(config.source, environ)
    return config if unit == environ else loader.load(config.source, environ=unit)


def salvaged(source: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """As much of a broken configuration as it takes to reach the running daemon. Raises ConfigError."""
    values = dict(_readable(source)) if source else {}
    for name in _PLACES:
        if text := environ.get(OPTIONS[name].environment):
            values[name] = text
    apart = {name: value for name, value in environ.items() if not name.startswith("S3SPOOL_")}
    return loader.load(overrides=values, environ=_environment_of_unit(source, apart), search=False)


def _environment_of_unit(source: Path | None, environ: Mapping[str, str]) -> Mapping[str, str]:
    """With the variables that systemd sets: s3spool.toml belongs to s3spool.service, NAME.toml to s3spool@NAME."""
    system = loader.SYSTEM_FILE
    if source is None or source.absolute().parent != system.parent:
        return environ
    below = "s3spool" if source.name == system.name else f"s3spool-{source.stem}"
    units = {"STATE_DIRECTORY": str(_STATE_BASE / below), "RUNTIME_DIRECTORY": str(_RUNTIME_BASE / below)}
    return {**environ, **{variable: place for variable, place in units.items() if not environ.get(variable)}}


def _readable(source: Path) -> Iterator[tuple[str, object]]:
    """The keys of _PLACES, each line read alone, so that a mistake elsewhere does no harm."""
    section = ""
    with suppress(OSError):
        for line in source.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            if line.lstrip().startswith("["):
                section = line.strip(" \t[").partition("]")[0].strip()
                continue
            with suppress(ValueError, RecursionError):
                for key, value in tomllib.loads(line).items():
                    name = f"{section}.{key}"
                    if name in _PLACES:
                        OPTIONS[name].read(value)
                        yield name, value
