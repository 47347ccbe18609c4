"""TOML, environment and command line become one frozen, checked `Config`; `schema` has the keys."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import asdict

from s3spool.config.rules import contradictions, lock_problem, read_rules
from s3spool.config.schema import COMMAND_LINE, OPTIONS, SECTIONS, AfterConfig, Config, DestinationConfig, value_of
from s3spool.config.trust import HERE, choose, is_inside, untrusted_reason
from s3spool.config.validators import is_loopback, split_address
from s3spool.config.values import named, unknown
from s3spool.errors import ConfigError, raise_config_errors

#: The last place where a configuration is looked for.
SYSTEM_FILE = Path("/etc/s3spool/s3spool.toml")

SOCKET_PATH_BYTES = 107  # sun_path has 108, the last is NUL
_RECEIPTS = {"xattr": ("keep", "archive"), "file": ("archive",)}  # the actions that leave a file to put it beside


class _Setting(NamedTuple):
    """A value as TOML has it, and its origin: a variable, which the error message names, a file or a flag."""

    section: str
    key: str | None
    value: object
    origin: str = ""

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    def error(self, field: str, problem: str) -> ConfigError:
        value = self.value
        if field == "destination.endpoint_url" and isinstance(value, str) and "@" in value:
            value = "***@" + value.rpartition("@")[2]  # a log must not repeat a password
        if field in {"service.http_token", "state.ledger"}:
            value = None  # likewise
        variable = f" [{self.origin}]" if self.origin.startswith("S3SPOOL_") else ""
        return ConfigError(field, value, f"{problem}{variable}")


def load(
    path: Path | None = None,
    *,
    overrides: Mapping[str, object] = {},
    environ: Mapping[str, str] = os.environ,
    tell: Callable[[str], object] = len,
    search: bool = True,
) -> Config:
    """Read the configuration: defaults < file < S3SPOOL_SECTION__KEY < `overrides`. Creates nothing on disk.

    Without `path` it reads the file that `locate` finds, or none if `search` is false. `overrides` has dotted names
    ("upload.workers"): a str is read like a variable, None means not given. `tell` gets one line about a file that
    other users could have written. Raises ConfigError, or CombinedConfigError with all errors.
    """
    source = path or (locate(environ, overrides=overrides, tell=tell) if search else None)
    given = [*_from_environment(environ), *_from_overrides(overrides)]
    if path and (why := untrusted_reason(path)):
        tell(f"{path}: {why}; it counts because it was named")
    settings = [*(_from_file(source) if source else ()), *given]
    known = {setting.name: setting for setting in settings if setting.name in OPTIONS}
    tables = [setting.value for setting in settings if (setting.section, setting.key) == ("rule", None)]
    errors = [_unknown(it) for it in settings if it.name not in OPTIONS and (it.section, it.key) != ("rule", None)]

    values = _read(known, environ, errors)
    rules = read_rules(tables[0], OPTIONS, errors) if tables else ()
    sections: dict[str, Any] = {
        section: cls(**{key: values[name] for key in cls.__struct_fields__ if (name := f"{section}.{key}") in values})
        for section, cls in SECTIONS.items()
    }
    origins = {name: setting.origin for name, setting in known.items()}
    config = Config(**sections, rules=rules, source=source and source.absolute(), origins=origins)
    refused = {error.field for error in errors}
    for name, other, problem in _contradictions(config):
        if not refused & {name, other}:
            setting = known.get(name) or _Setting("", "", value_of(config, name) or "")
            errors.append(setting.error(name, problem))
            refused.add(name)
    has_archive = config.after.archive_directory is not None
    errors += contradictions(rules, asdict(config.destination), has_archive=has_archive)
    raise_config_errors(errors)
    return config


def locate(
    environ: Mapping[str, str] = os.environ,
    *,
    overrides: Mapping[str, object] = {},
    tell: Callable[[str], object] = len,
) -> Path | None:
    """The first trusted file of `places`; None: there is none. Raises ConfigError if the only one is not trusted."""
    given = [*_from_environment(environ), *_from_overrides(overrides)]
    files = [place for place in places(environ) if os.path.isfile(place)]  # Path's raises under ProtectHome=
    return choose(files, lambda: _watched(files, given), tell)


def require_bucket(config: Config) -> None:
    """For the commands that talk to S3. Raises ConfigError."""
    if not config.destination.bucket:
        problem = (
            "put the bucket's name into s3spool.toml, S3SPOOL_DESTINATION__BUCKET or the command line "
            "(s3spool run ./tmp s3://BUCKET), or run `s3spool demo`"
        )
        raise ConfigError("destination.bucket", "", problem)


def places(environ: Mapping[str, str]) -> list[Path]:
    """The files that may hold the configuration, in this order."""
    own = _xdg_directory(environ, "XDG_CONFIG_HOME", ".config")
    return [HERE, *([own / "s3spool.toml"] if own else []), SYSTEM_FILE]


def _watched(files: Sequence[Path], given: Sequence[_Setting]) -> Iterator[Path]:
    """The folders that any configuration in sight watches; wrong ones are reported when they are used."""
    for file in (None, *files, *SYSTEM_FILE.parent.glob("*.toml")):
        with suppress(ConfigError, ValueError):
            for setting in _from_file(file) if file else given:
                if setting.name == "watch.directory":
                    yield OPTIONS["watch.directory"].read(setting.value)


def _from_file(path: Path) -> Iterator[_Setting]:
    origin = f"./{path}" if path == HERE else str(path)
    for section, table in _document(path).items():
        if isinstance(table, dict) and section in SECTIONS:
            yield from (_Setting(section, key, value, origin) for key, value in table.items())
        else:
            yield _Setting(section, None, table)


def _document(path: Path) -> dict[str, object]:
    content = b""
    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors put a byte order mark
    except OSError as exc:
        problem = f"cannot be read: {exc.strerror}"
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        problem = f"line {line} is not UTF-8; save the file as UTF-8"
    except RecursionError:
        problem = "nests too deeply"
    except ValueError as exc:  # TOMLDecodeError, or an int of thousands of digits
        line = content.count(b"\n") + 1
        problem = f"is not TOML: {exc}".replace("at end of document", f"at the end, line {line}")
    raise ConfigError(str(path), None, problem)


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Setting]:
    for variable, text in environ.items():
        if variable.startswith("S3SPOOL_") and "__" in variable:
            section, _, key = variable.removeprefix("S3SPOOL_").lower().partition("__")
            yield _Setting(section, key, _from_text(f"{section}.{key}", text), variable)


def _from_overrides(overrides: Mapping[str, object]) -> Iterator[_Setting]:
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        if value is not None or dotted not in OPTIONS:
            yield _Setting(section, key, _from_text(dotted, value) if isinstance(value, str) else value, COMMAND_LINE)


def _from_text(name: str, text: str) -> object:
    return OPTIONS[name].from_text(text) if name in OPTIONS else text


def _read(known: Mapping[str, _Setting], environ: Mapping[str, str], errors: list[ConfigError]) -> dict[str, Any]:
    """The checked values of all keys that have one or need one; adds to `errors`."""
    values: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if name in known or option.required:
            setting = known.get(name) or _Setting("", "", option.shown)
            try:
                values[name] = option.read(setting.value)
                if option.required and values[name] is None:
                    values[name] = _default_path(values["state.directory"], environ)
            except ValueError as exc:
                errors.append(setting.error(name, str(exc)))
                values[name] = Path("/") if option.required else option.value  # a value for the checks of other keys
    return values


def _default_path(state: Path | None, environ: Mapping[str, str]) -> Path:
    """The directory of the ledger, or the control socket, which is in the directory `state` outside of systemd."""
    variable = "RUNTIME_DIRECTORY" if state else "STATE_DIRECTORY"
    first = environ.get(variable, "").partition(":")[0]  # systemd separates several with colons
    own = Path(first).absolute() if first else None
    if state:
        return (own or state) / "control.sock"
    own = own or _xdg_directory(environ, "XDG_STATE_HOME", ".local/state")
    if not own:
        raise ValueError("there is no home directory to default to; name one")
    return own


def _xdg_directory(environ: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """The directory of s3spool in an XDG base directory; the specification ignores relative values."""
    base = Path(environ.get(variable, ""))
    home = Path(environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 - Path's raises where there is none
    if not base.is_absolute():
        base = home / below_home
    return base / "s3spool" if base.is_absolute() else None


def _unknown(setting: _Setting) -> ConfigError:
    section, key = setting.section, setting.key
    if section == "rule":
        return setting.error(section, "rules stand in the file, as [[rule]], and nowhere else")
    if section in SECTIONS and key is None:
        return setting.error(section, f"must be a table: a line [{section}] with its keys below")
    near = [name for name in OPTIONS if name.endswith(f".{key if section in SECTIONS else section}")]
    if section not in SECTIONS:
        field, problem = named(section), unknown("section", section, SECTIONS, near)
    else:
        field = f"{section}.{named(key or '')}"
        problem = unknown("key", key or "", SECTIONS[section].__struct_fields__, near)
    return setting._replace(value=None).error(field, problem)


def _contradictions(config: Config) -> Iterator[tuple[str, str, str]]:
    """Keys that do not fit together: the one that is wrong, the other one, and the problem."""
    destination, retry, after, socket = config.destination, config.retry, config.after, config.service.control_socket
    watched, state, archive = config.watch.directory, config.state.directory, after.archive_directory
    if destination.kms_key_id and destination.sse != "aws:kms":
        yield "destination.kms_key_id", "destination.sse", 'needs destination.sse = "aws:kms"'
    if found := lock_problem(asdict(destination)):
        yield f"destination.{found[0]}", "destination.object_lock_mode", found[1]
    yield from _endpoint_contradictions(destination)
    if retry.max_s < retry.initial_s:
        yield "retry.max_s", "retry.initial_s", f"must not be less than retry.initial_s, {retry.initial_s:g}"
    yield from _after_contradictions(after)
    for inner, outer, other, problem in (
        (archive, watched, "watch", "be inside watch.directory: archived files would be sent again"),
        (watched, archive, "watch", "hold watch.directory: archived files could land in it and be sent again"),
        (state, archive, "state", "hold state.directory: archived files could land beside the ledger"),
    ):
        if inner and outer and is_inside(inner, outer):
            yield "after.archive_directory", f"{other}.directory", f"must not {problem}"
    if is_inside(state, watched):
        yield "state.directory", "watch.directory", "must not be inside watch.directory: the ledger would be sent, too"
    if (length := len(os.fsencode(socket))) > SOCKET_PATH_BYTES:
        problem = f"is {length} bytes long, a socket's path may have {SOCKET_PATH_BYTES}; set a shorter one"
        yield "service.control_socket", "service.control_socket", problem
    service = config.service
    if service.http_listen and not service.http_token and not is_loopback(split_address(service.http_listen)[0]):
        problem = "other hosts can reach this address: set service.http_token, or listen on 127.0.0.1"
        yield "service.http_listen", "service.http_token", problem


def _after_contradictions(after: AfterConfig) -> Iterator[tuple[str, str, str]]:
    if after.action == "archive" and after.archive_directory is None:
        yield "after.archive_directory", "after.action", 'must name a directory for after.action = "archive"'
    if after.receipt and after.action not in (_RECEIPTS[after.receipt]):
        wanted = " or ".join(f'"{action}"' for action in _RECEIPTS[after.receipt])
        yield "after.receipt", "after.action", f"needs after.action = {wanted}"


def _endpoint_contradictions(destination: DestinationConfig) -> Iterator[tuple[str, str, str]]:
    for key in ("use_accelerate_endpoint", "use_dualstack_endpoint", "use_fips_endpoint"):
        if getattr(destination, key) and destination.endpoint_url:
            yield f"destination.{key}", "destination.endpoint_url", "is for AWS: destination.endpoint_url must be empty"
    if not destination.use_accelerate_endpoint:
        return
    if destination.use_fips_endpoint:
        yield "destination.use_accelerate_endpoint", "destination.use_fips_endpoint", "AWS accelerates no FIPS endpoint"
    if destination.addressing_style == "path" or "." in destination.bucket or destination.bucket.startswith("arn:"):
        problem = 'needs a bucket name without dots, in the host: not an ARN, nor addressing_style = "path"'
        yield "destination.use_accelerate_endpoint", "destination.bucket", problem
