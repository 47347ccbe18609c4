"""How one setting is read: TOML, a variable or a flag in, one checked Python value out.

A wrong value raises BadValueError, which says what it must be; the caller knows the key's name and adds it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": TIB,
}


class BadValueError(ValueError):
    """What the value must be instead, to follow the key's name and a colon."""


class _Described(msgspec.Struct, frozen=True):
    """What a key means, and how its value is written.

    Each kind below adds `read`, which checks a value as tomllib gives it and returns it in its final type.
    """

    doc: str

    def from_text(self, text: str) -> object:
        """The TOML value that a variable or flag stands for; nonsense is left for `read` to refuse."""
        return text

    def literal(self, default: object) -> str:
        """The key's default as a person would write it in TOML."""
        return msgspec.json.encode(default).decode()


class Switch(_Described, frozen=True):
    def read(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise BadValueError("must be true or false")
        return value

    def from_text(self, text: str) -> object:
        return _toml(text)


class Whole(_Described, frozen=True):
    least: int
    most: int

    def read(self, value: object) -> int:
        if type(value) is not int:  # true is an int to isinstance
            raise BadValueError(f"must be a whole number between {self.least} and {self.most}")
        if not self.least <= value <= self.most:
            raise BadValueError(f"must be between {self.least} and {self.most}")
        return value

    def from_text(self, text: str) -> object:
        return _toml(text)


class Seconds(_Described, frozen=True):
    least: float
    most: float

    def read(self, value: object) -> float:
        limits = f"between {self.least} and {self.most}"
        if type(value) is not int and type(value) is not float:
            raise BadValueError(f"must be a number of seconds {limits}")
        if not self.least <= value <= self.most:  # never true for NaN
            raise BadValueError(f"must be {limits} (seconds)")
        return float(value)

    def from_text(self, text: str) -> object:
        return _toml(text)


class Size(_Described, frozen=True):
    """Bytes, as a number or with a unit."""

    least: int
    most: int
    per_second: bool = False  #: a rate: may end in "/s"
    optional: bool = False  #: "" or 0 mean no limit

    def read(self, value: object) -> int:
        size = self._bytes(value)
        if self.optional and size == 0:
            return 0
        if not self.least <= size <= self.most:
            raise BadValueError(f"must be between {_size(self.least)} and {_size(self.most)}")
        return size

    def literal(self, default: object) -> str:
        return _quoted("" if default == 0 else _size(cast("int", default)))

    def _bytes(self, value: object) -> int:
        if type(value) is int:
            return value
        if isinstance(value, str):
            if self.per_second:
                value = value.removesuffix("/s")
            if self.optional:
                value = value or "0"
            if found := re.fullmatch(r"([0-9]{1,18}) ?([KMGT]?i?B|)", value.strip(), re.IGNORECASE):
                unit = _UNITS.get(found[2].upper())
                if unit is not None:
                    return int(found[1]) * unit
        example = "50MiB/s" if self.per_second else "16MiB, 50MB or 1GiB"
        if self.optional:
            example += ", or empty for no limit"
        raise BadValueError(f"must be a size like {example}")


class Choice(_Described, frozen=True):
    choices: tuple[str, ...]

    def read(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.choices:
            names = [choice for choice in self.choices if choice]
            or_empty = ", or empty" if "" in self.choices else ""
            raise BadValueError(f"must be one of {', '.join(names)}{or_empty}")
        return value


class Text(_Described, frozen=True):
    check: Callable[[str], str]  #: returns the text to keep, or raises ValueError; not asked about ""

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise BadValueError("must be a string, in quotes")
        if not value.isprintable():
            raise BadValueError("must not hold control characters")
        return self.check(value) if value else ""


class Place(_Described, frozen=True):
    """A path; relative to the current directory, `~` is the home directory."""

    default: str = ""  #: where it is empty, an empty value is fine too and gives None

    def read(self, value: object) -> Path | None:
        if not isinstance(value, (str, Path)) or "\0" in str(value):
            raise BadValueError("must be a path, in quotes")
        if value == "":
            if self.default:
                raise BadValueError("must name a directory")
            return None
        path = os.path.expanduser(value)  # noqa: PTH111 - Path's raises where there is no home
        if path.startswith("~"):
            raise BadValueError("this home directory is not known; write the path in full")
        try:
            return Path(path).absolute()
        except OSError as exc:
            raise BadValueError("the current directory is gone; write the path in full") from exc

    def literal(self, default: object) -> str:  # noqa: ARG002 - its default is not known before it is loaded
        return _quoted(self.default)


class Globs(_Described, frozen=True):
    least: int  #: how many patterns there must be

    def read(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(glob, str) and glob for glob in value):
            raise BadValueError('must be a list of patterns, like ["*.csv", "logs/*"]')
        if len(value) < self.least:
            raise BadValueError('must hold at least one pattern; ["*"] takes every file')
        return tuple(value)

    def from_text(self, text: str) -> object:
        value = _toml(text)
        if isinstance(value, list) or re.match(r"""\s*\[\s*["']""", text):
            return value  # an array, or what was meant to be one; "[ab]*" is a pattern
        return [glob.strip() for glob in text.split(",") if glob.strip()]

    def literal(self, default: object) -> str:
        return f"[{', '.join(map(_quoted, cast('tuple[str, ...]', default)))}]"


class Pairs(_Described, frozen=True):
    check: Callable[[dict[str, str]], None]

    def read(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            raise BadValueError('must be a table of strings, like { team = "data" }')
        for key, text in value.items():
            if not isinstance(text, str):
                raise BadValueError(f"the value of {key!r} must be a string, in quotes")
        self.check(value)
        return dict(value)

    def from_text(self, text: str) -> object:
        if text.lstrip().startswith("{"):
            return _toml(text)
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        if not all(equals for _, equals, _ in pairs):
            return text
        return {key.strip(): value.strip() for key, _, value in pairs}


Kind = Switch | Whole | Seconds | Size | Choice | Text | Place | Globs | Pairs


def _toml(text: str) -> object:
    """The TOML value that the text spells, or the text itself where it spells none."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _size(count_bytes: int) -> str:
    unit, factor = next(
        (unit, factor)
        for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1))
        if count_bytes % factor == 0
    )
    return f"{count_bytes // factor}{unit}"
