"""Which [[rule]] applies to a file, for `why` and `key`."""

from __future__ import annotations

from typing import Any

from s3spool.config.loader import Config
from s3spool.folder.rules import FileRules


def with_rule(answer: dict[str, Any], rules: FileRules, path: str) -> dict[str, Any]:
    """An answer of `why` that names the rule: its number (from 1), None where none applies."""
    if len(rules.destinations) == 1:
        return answer  # there are no rules
    name = rules.name(path)
    return answer | {"rule": rules.number(path), "why": f"{answer['why']}; {name or 'no rule'} applies"}


def prefix_of(config: Config, path: str) -> dict[str, str]:
    """The prefix of a file's key, and the rule that has a say: `rule 2 (*.html)`, or ""."""
    rules = FileRules(config)
    return {"prefix": rules.destination(path).prefix, "rule": rules.name(path)}
