"""`[[rule]]`: keys of [destination] and the post-upload action for the files that match; the first match wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from s3spool.config.values import Option, globs, named, unknown
from s3spool.errors import ConfigError

#: What a rule may set: keys of [destination].
DESTINATION_KEYS = (
    "prefix", "storage_class", "content_type", "content_encoding", "content_disposition", "content_language",
    "cache_control", "tags", "metadata", "acl", "object_lock_mode", "object_lock_days", "legal_hold",
)  # fmt: skip


class Rule(NamedTuple):
    """One table, checked. What it leaves out comes from [destination] and [after]."""

    match: tuple[str, ...]
    destination: Mapping[str, Any]
    after: str | None = None  # the action

    @property
    def sets_lock(self) -> bool:
        return not {"object_lock_mode", "object_lock_days"}.isdisjoint(self.destination)

    @property
    def name(self) -> str:
        return ", ".join(self.match)


class _Match(msgspec.Struct):
    match: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1)], ...], globs("patterns, on the relative path, like include", 1)
    ] = ()


_MATCH = Option("rule.match", msgspec.structs.fields(_Match)[0])


def read_rules(tables: object, options: Mapping[str, Option], errors: list[ConfigError]) -> tuple[Rule, ...]:
    """The checked rules; adds to `errors`, whose fields are like `rule[2].prefix`: the first rule is number 1."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        errors.append(ConfigError("rule", None, "must be tables: a line [[rule]] with its keys below, for each rule"))
        return ()
    names = {"after": "after.action"} | {key: f"destination.{key}" for key in DESTINATION_KEYS}
    keys = {"match": _MATCH} | {key: options[name] for key, name in sorted(names.items())}
    return tuple(_read(f"rule[{number}]", table, keys, errors) for number, table in enumerate(tables, 1))


def lock_problem(destination: Mapping[str, Any]) -> tuple[str, str] | None:
    """The key of object lock that does not fit to the other one, and why."""
    mode, days = destination["object_lock_mode"], destination["object_lock_days"]
    if mode and not days:
        return "object_lock_mode", "needs object_lock_days of at least 1"
    return ("object_lock_days", "needs object_lock_mode") if days and not mode else None


def _read(rule: str, table: Mapping[str, object], keys: Mapping[str, Option], errors: list[ConfigError]) -> Rule:
    values: dict[str, Any] = {}
    for key, value in {"match": None, **table}.items():
        if key not in keys:
            errors.append(ConfigError(f"{rule}.{named(key)}", None, unknown("key", key, keys)))
            continue
        try:
            values[key] = keys[key].read(value)
        except ValueError as exc:
            problem = 'is missing: the patterns of the files, like match = ["*.html"]' if value is None else str(exc)
            errors.append(ConfigError(f"{rule}.{key}", value, problem))
    match, after = values.pop("match", ()), values.pop("after", None)
    return Rule(match, values, after)


def contradictions(
    rules: tuple[Rule, ...], destination: Mapping[str, Any], *, has_archive: bool
) -> Iterator[ConfigError]:
    """Keys of rules that do not fit to other keys; `destination`: the values of [destination]."""
    for number, rule in enumerate(rules, 1):
        merged = {**destination, **rule.destination}
        if rule.sets_lock and (found := lock_problem(merged)):
            key, problem = found
            yield ConfigError(f"rule[{number}].{key}", merged[key], problem)
        if rule.after == "archive" and not has_archive:
            yield ConfigError(f"rule[{number}].after", "archive", "needs after.archive_directory")
