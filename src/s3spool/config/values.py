"""Types of settings: how TOML, a variable or a flag becomes a checked Python value."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

_UNITS = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB, "TB": 1000**4, "GB": 1000**3, "MB": 1000**2, "KB": 1000}
_FACTORS = {unit.lower(): factor for unit, factor in _UNITS.items()} | {"b": 1, "": 1}
_TYPES: dict[object, str] = {
    bool: "must be true or false",
    str: "must be a string, in quotes",
    tuple: 'must be a list of patterns, like ["*.csv", "logs/*"]',
    dict: 'must be a table of strings, like { team = "data" }',
}


def doc(meaning: str, rule: Callable[[Any], Any] | None = None) -> Meta:
    """`rule` returns the value to keep, or raises ValueError."""
    return Meta(description=meaning, extra={"rule": rule})


def matching(meaning: str, rule: tuple[str, str]) -> Meta:
    """`rule` is a pattern, and the sentence that says what matches it."""
    return Meta(description=meaning, pattern=rule[0], extra={"limits": rule[1]})


def whole(meaning: str, least: float, most: float, kind: str = "whole number", hint: str = "") -> Meta:
    limits = f"between {least} and {most}"
    extra = {"type": f"must be a {kind} {limits}", "limits": f"must be {limits}{hint}"}
    return Meta(description=meaning, ge=least, le=most, extra=extra)


def seconds(meaning: str, least: float, most: float) -> Meta:
    return whole(meaning, least, most, "number of seconds", " (seconds)")


def size(meaning: str, least: int, most: int, *, suffix: str = "") -> Meta:
    """Bytes, as a number or with a unit, which `suffix` may follow. A default of 0 means no limit."""
    limits = f"must be between {_with_unit(least)} and {_with_unit(most)}"
    kind = f"must be a size like {f'50MiB{suffix}' if suffix else '16MiB, 50MB or 1GiB'}"
    extra = {"type": kind, "limits": limits, "shown": _with_unit, "parse": partial(_bytes, suffix=suffix)}
    return Meta(description=meaning, ge=least, le=most, extra=extra)


def path(meaning: str, default: str = "") -> Meta:
    """A path, relative to the current directory; `~` is the home directory."""
    return Meta(description=meaning, extra={"shown": lambda _: default})


def globs(meaning: str, least: int = 0) -> Meta:
    limits = 'must hold at least one pattern; ["*"] takes every file'
    return Meta(description=meaning, min_length=least, extra={"limits": limits})


def named(key: str) -> str:
    """A section or key as a message shows it."""
    return key if key.isprintable() and key else repr(key)


def unknown(what: str, wrong: str, known: Collection[str], near: Sequence[str] = ()) -> str:
    """The sentence for a section or key that does not exist, with the nearest known one."""
    import difflib  # noqa: PLC0415 - start-up time

    near = near or difflib.get_close_matches(wrong, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} ({hint})"


class Option:
    """One key: its name, default and meaning, and how its value is read."""

    def __init__(self, name: str, field: msgspec.structs.FieldInfo) -> None:
        (meta,) = field.type.__metadata__
        self._type, self._base, self._extra = field.type, field.type.__origin__, meta.extra or {}
        self._kind = get_origin(self._base) or self._base
        has_factory = field.default_factory is not msgspec.NODEFAULT
        self.value: Any = field.default_factory() if has_factory else field.default  #: the default, as Config has it
        self.required = field.required  #: without a default in Config
        self.name = name  #: dotted
        self.doc: str = meta.description
        self.environment = "S3SPOOL_" + name.upper().replace(".", "__")
        self.shown: str | None = self._extra["shown"](self.value) if "shown" in self._extra else self.value
        self.default = msgspec.json.format(msgspec.json.encode(self.shown), indent=0).decode()  #: a TOML literal

    def from_text(self, text: str) -> object:
        """The TOML value that a variable or flag stands for; `read` refuses nonsense."""
        if "parse" in self._extra:
            return text
        readers = {bool: _toml, int: _toml, float: _toml, tuple: _globs, dict: _pairs}
        return readers[self._kind](text) if self._kind in readers else text

    def read(self, value: object) -> Any:
        """The checked value in its final type. Raises ValueError, which says what it must be."""
        if value == "" and self.default == '""':
            return None if self.value is msgspec.NODEFAULT else self.value
        if self._kind is str and isinstance(value, str) and not value.isprintable():
            raise ValueError("must not hold control characters")
        value = self._extra["parse"](value) if "parse" in self._extra else value
        if type(value) is type(self.value) and value == self.value:
            return value  # a size of 0 means no limit and lies outside of the limits
        try:
            found = msgspec.convert(value, self._type, dec_hook=_path)
        except msgspec.ValidationError as exc:
            raise ValueError(str(exc.__cause__) if exc.__cause__ else self._problem(value)) from None
        rule = self._extra.get("rule")
        return rule(found) if rule else found

    def _problem(self, value: object) -> str:
        if self._kind is Literal:
            choices = [choice for choice in get_args(self._base) if choice]
            return f"must be one of {', '.join(choices)}" + (", or empty" if self.value == "" else "")
        if isinstance(value, dict) and self._kind is dict:
            wrong = next(key for key, item in value.items() if not isinstance(item, str))
            return f"the value of {wrong!r} must be a string, in quotes"
        try:
            msgspec.convert(value, self._base)
        except msgspec.ValidationError:
            or_empty = ", or empty for no limit" if self.default == '""' and "parse" in self._extra else ""
            return (self._extra.get("type") or _TYPES[self._kind]) + or_empty
        return str(self._extra["limits"])


def _path(_: type, value: object) -> Path:
    if not isinstance(value, (str, Path)) or "\0" in str(value):
        raise ValueError("must be a path, in quotes")
    if value == "":
        raise ValueError("must name a directory")
    path = os.path.expanduser(value)  # noqa: PTH111 - Path's raises where there is no home
    if path.startswith("~"):
        raise ValueError("this home directory is not known; write the path in full")
    try:
        return Path(path).absolute()
    except OSError as exc:
        raise ValueError("the current directory is gone; write the path in full") from exc


def _bytes(value: object, suffix: str) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]{1,18}) ?([KMGT]?i?B|)", value.removesuffix(suffix).strip(), re.IGNORECASE)
    factor = _FACTORS.get(found[2].lower()) if found else None
    return int(found[1]) * factor if found and factor else value


def _with_unit(size_bytes: int) -> str:
    unit, factor = next((pair for pair in _UNITS.items() if size_bytes % pair[1] == 0), ("B", 1))
    return f"{size_bytes // factor}{unit}" if size_bytes else ""


def _toml(text: str) -> object:
    """The TOML value that the text spells, else the text itself."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def _globs(text: str) -> object:
    value = _toml(text)
    if isinstance(value, list) or re.match(r"""\s*\[\s*["']""", text):
        return value  # an array, perhaps a broken one; "[ab]*" is a pattern
    return [glob.strip() for glob in text.split(",") if glob.strip()]


def _pairs(text: str) -> object:
    if text.lstrip().startswith("{"):
        return _toml(text)
    found = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not all(equals for _, equals, _ in found):
        return text
    return {key.strip(): value.strip() for key, _, value in found}
