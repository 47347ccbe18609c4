"""TOML, environment and command line become one frozen, checked object; config_schema.py has the keys.

What no file can say, whether the directories can be used, is config_directories.py's.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from s3spool.config.directories import check_directories
from s3spool.config.schema import (
    ENVIRONMENT_PREFIX,
    FIELDS,
    KINDS,
    LIVE,
    SECTIONS,
    Config,
    Option,
    changed,
    options,
    without_effect,
)
from s3spool.config.trust import HERE, choose, doubt, is_inside
from s3spool.config.validators import PREFIX_FIELDS
from s3spool.config.values import BadValueError, Place
from s3spool.errors import ConfigError

__all__ = [
    "LIVE",
    "PREFIX_FIELDS",
    "SYSTEM_FILE",
    "Config",
    "Option",
    "changed",
    "check_directories",
    "load",
    "options",
    "places",
    "require_bucket",
    "without_effect",
]


#: Where a configuration is looked for last.
SYSTEM_FILE = Path("/etc/s3spool/s3spool.toml")

_SOCKET_PATH_BYTES = 107  # sun_path has 108, the last is NUL


class _Setting(NamedTuple):
    """A value somebody wrote, as TOML has it, and the variable it stood in; both for the error message."""

    value: object
    origin: str = ""


def load(
    path: Path | None = None,
    *,
    overrides: Mapping[str, object] = {},
    environ: Mapping[str, str] = os.environ,
    tell: Callable[[str], object] = len,
) -> Config:
    """Read the configuration: defaults < file < S3SPOOL_SECTION__KEY < `overrides`.

    Without `path` the first of ./s3spool.toml, $XDG_CONFIG_HOME/s3spool/s3spool.toml and
    /etc/s3spool/s3spool.toml is taken, if there is one. `overrides` has dotted names ("upload.workers"):
    a str is read like a variable, None was not given. `tell` gets one line about a file that others could have
    written. Nothing is made on disk. Raises ConfigError.
    """
    given = {**_from_environment(environ), **_from_overrides(overrides)}
    files = [place for place in places(environ) if os.path.isfile(place)]  # Path's raises under ProtectHome=
    source = path or choose(files, lambda: _watched(files, given), tell)
    if path and (why := doubt(path)):
        tell(f"{path}: {why}; it counts because it was named")
    settings = {**(_from_file(source) if source else {}), **given}
    found = {name: _read(name, setting) for name, setting in settings.items()}

    for name in ("watch.directory", "state.directory", "service.control_socket"):
        if name not in found:
            found[name] = _read(name, _Setting(cast("Place", KINDS[name]).default))
    found["state.directory"] = state = found["state.directory"] or _state_directory(environ)
    found["service.control_socket"] = found["service.control_socket"] or (
        (_first_directory(environ, "RUNTIME_DIRECTORY") or state) / "control.sock"
    )

    sections: dict[str, Any] = {
        section: cls(**{key: found[name] for key in cls.__struct_fields__ if (name := f"{section}.{key}") in found})
        for section, cls in SECTIONS.items()
    }
    config = Config(**sections, source=source and source.absolute())
    _check_together(config, settings)
    return config


def require_bucket(config: Config) -> None:
    """For the commands that talk to S3."""
    if not config.destination.bucket:
        raise ConfigError(
            "destination.bucket",
            config.destination.bucket,
            "put the bucket's name into s3spool.toml, S3SPOOL_DESTINATION__BUCKET or the command line "
            "(s3spool run ./tmp s3://BUCKET), or run `s3spool demo`",
        )


# --- where values come from


def places(environ: Mapping[str, str]) -> list[Path]:
    """Where a configuration is looked for, in this order."""
    own = _xdg_directory(environ, "XDG_CONFIG_HOME", ".config")
    return [HERE, *([own / "s3spool.toml"] if own else []), SYSTEM_FILE]


def _watched(files: list[Path], given: Mapping[str, _Setting]) -> Iterator[Path]:
    """The folders that any configuration in sight watches; one that is wrong says so when it is taken."""
    tables: list[Callable[[], Mapping[str, _Setting]]] = [lambda: given]
    tables += [partial(_from_file, file) for file in (*files, *SYSTEM_FILE.parent.glob("*.toml"))]
    for table in tables:
        with suppress(ConfigError):
            if folder := table().get("watch.directory"):
                yield _read("watch.directory", folder)


def _from_file(path: Path) -> dict[str, _Setting]:
    where = str(path)
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ConfigError(where, None, f"cannot be read: {exc.strerror}") from exc
    try:
        document = tomllib.loads(content.decode("utf-8-sig"))  # some editors put a byte order mark
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise ConfigError(where, None, f"line {line} is not UTF-8; save the file as UTF-8") from exc
    except RecursionError as exc:
        raise ConfigError(where, None, "nests too deeply") from exc
    except ValueError as exc:  # TOMLDecodeError, or an int of thousands of digits
        problem = f"is not TOML: {exc}"
        last_line = content.count(b"\n") + 1
        raise ConfigError(where, None, problem.replace("at end of document", f"at the end, line {last_line}")) from exc

    settings = {}
    for section, table in document.items():
        if section not in SECTIONS:
            _refuse_unknown(section, None, "")
        if not isinstance(table, dict):
            raise ConfigError(section, table, f"must be a table: a line [{section}] with its keys below")
        for key, value in table.items():
            settings[_known(section, key, "")] = _Setting(value)
    return settings


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Setting]:
    settings = {}
    for variable, text in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and "__" in variable:
            section, _, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
            name = _known(section, key, variable)
            settings[name] = _Setting(KINDS[name].from_text(text), variable)
    return settings


def _from_overrides(overrides: Mapping[str, object]) -> dict[str, _Setting]:
    settings = {}
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        name = _known(section, key, "")
        if value is not None:
            settings[name] = _Setting(KINDS[name].from_text(value) if isinstance(value, str) else value)
    return settings


def _read(name: str, setting: _Setting) -> Any:
    try:
        return KINDS[name].read(setting.value)
    except BadValueError as exc:
        _refuse(name, setting, str(exc))


def _state_directory(environ: Mapping[str, str]) -> Path:
    own = _first_directory(environ, "STATE_DIRECTORY") or _xdg_directory(environ, "XDG_STATE_HOME", ".local/state")
    if own is None:
        raise ConfigError("state.directory", "", "there is no home directory to default to; name one")
    return own


def _first_directory(environ: Mapping[str, str], variable: str) -> Path | None:
    """Systemd sets these, with colons between where a unit has several."""
    first = environ.get(variable, "").partition(":")[0]
    return Path(first).absolute() if first else None


def _xdg_directory(environ: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """Our part of an XDG base directory; relative values are to be ignored, says its specification."""
    base = Path(environ.get(variable, ""))
    home = Path(environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 - Path's raises where there is none
    if not base.is_absolute():
        base = home / below_home
    return base / "s3spool" if base.is_absolute() else None


# --- what is refused


def _known(section: str, key: str, origin: str) -> str:
    name = f"{section}.{key}"
    if name not in FIELDS:
        _refuse_unknown(section, key, origin)
    return name


def _refuse_unknown(section: str, key: str | None, origin: str) -> NoReturn:
    import difflib  # noqa: PLC0415 - start-up time

    if section in SECTIONS and key is not None:
        what, wrong, known = "key", key, list(SECTIONS[section].__struct_fields__)
        field = f"{section}.{_bare(key)}"
    else:
        what, wrong, known = "section", section, list(SECTIONS)
        field = _bare(section)
    homes = [name for name in FIELDS if name.endswith(f".{wrong}")]
    if near := homes or difflib.get_close_matches(wrong, known, n=1):
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"known: {', '.join(known)}"
    _refuse(field, _Setting(None, origin), f"unknown {what} ({hint})")


def _refuse(name: str, setting: _Setting, problem: str) -> NoReturn:
    value = setting.value
    if name == "destination.endpoint_url" and isinstance(value, str) and "@" in value:
        value = "***@" + value.rpartition("@")[2]  # a password is not repeated in a log
    raise ConfigError(name, value, f"{problem} [{setting.origin}]" if setting.origin else problem) from None


def _bare(key: str) -> str:
    """A key fit for one line, whatever it holds."""
    return key if key.isprintable() and key else repr(key)


def _check_together(config: Config, settings: Mapping[str, _Setting]) -> None:
    """What no key can be asked alone."""

    def refuse(name: str, value: object, problem: str) -> NoReturn:
        _refuse(name, settings.get(name) or _Setting(value), problem)

    watch, destination, after, state = config.watch, config.destination, config.after, config.state
    if destination.kms_key_id and destination.sse != "aws:kms":
        refuse("destination.kms_key_id", destination.kms_key_id, 'needs destination.sse = "aws:kms"')
    if config.retry.max_s < config.retry.initial_s:
        problem = f"must not be less than retry.initial_s, {config.retry.initial_s:g}"
        refuse("retry.max_s", config.retry.max_s, problem)
    if after.action == "archive" and after.archive_directory is None:
        refuse("after.archive_directory", "", 'must name a directory for after.action = "archive"')
    if after.archive_directory and is_inside(after.archive_directory, watch.directory):
        problem = "must not be inside watch.directory: archived files would be sent again"
        refuse("after.archive_directory", str(after.archive_directory), problem)
    if after.archive_directory and is_inside(watch.directory, after.archive_directory):
        problem = "must not hold watch.directory: archived files could land in it and be sent again"
        refuse("after.archive_directory", str(after.archive_directory), problem)
    if after.archive_directory and is_inside(state.directory, after.archive_directory):
        problem = "must not hold state.directory: archived files could land beside the ledger"
        refuse("after.archive_directory", str(after.archive_directory), problem)
    if is_inside(state.directory, watch.directory):
        problem = "must not be inside watch.directory: the ledger would be sent, too"
        refuse("state.directory", str(state.directory), problem)
    if (length := len(os.fsencode(config.service.control_socket))) > _SOCKET_PATH_BYTES:
        problem = f"is {length} bytes long, a socket's path may have {_SOCKET_PATH_BYTES}; set a shorter one"
        refuse("service.control_socket", str(config.service.control_socket), problem)
