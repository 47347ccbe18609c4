"""Which names are ours: the include and exclude globs of [watch]."""

from __future__ import annotations

import re
from collections.abc import Sequence


class Names:
    """Decides by relative path. Immutable, so thread-safe.

    A pattern without a slash speaks of one path component: as an exclude of any component (".*" hides
    ".git/config" as well), as an include of the last one. A pattern with a slash speaks of the whole relative
    path. `*` and `?` stop at slashes, `**` does not.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._everything = "*" in include
        self._include = _compiled(include, r"(?:^|.*/)")
        self._exclude = _compiled(exclude, r"(?:^|.*/)") if exclude else None

    def file(self, path: str) -> bool:
        if not self._everything and not self._include.match(path):
            return False
        return self._exclude is None or not self._excluded(path)

    def directory(self, path: str) -> bool:
        """Whether to look into this directory."""
        return self._exclude is None or not self._excluded(path)

    def _excluded(self, path: str) -> bool:
        assert self._exclude is not None  # noqa: S101 - for the type checker
        if self._exclude.match(path):
            return True
        parent, slash, _ = path.rpartition("/")
        return bool(slash) and self._excluded(parent)


def _compiled(patterns: Sequence[str], any_parent: str) -> re.Pattern[str]:
    whole = [_translate(p.strip("/")) for p in patterns if "/" in p.strip("/")]
    single = [_translate(p.strip("/")) for p in patterns if "/" not in p.strip("/")]
    if single:
        whole.append(f"{any_parent}(?:{'|'.join(single)})")
    return re.compile(rf"(?:{'|'.join(whole)})\Z" if whole else r"(?!)", re.DOTALL)


def _translate(glob: str) -> str:
    out = []
    for token in re.findall(r"\*\*/?|\*|\?|\[!?\]?[^]]*\]|.", glob, re.DOTALL):
        if token == "**/":  # noqa: S105 - a glob, not a password
            out.append("(?:.*/)?")
        elif token == "**":  # noqa: S105 - the same
            out.append(".*")
        elif token == "*":  # noqa: S105 - the same
            out.append("[^/]*")
        elif token == "?":  # noqa: S105 - the same
            out.append("[^/]")
        elif token.startswith("[") and len(token) > 2:  # noqa: PLR2004 - "[x]"
            inner = token[1:-1].replace("\\", r"\\")
            out.append(f"[{'^' + inner[1:] if inner.startswith('!') else inner}]")
        else:
            out.append(re.escape(token))
    return "".join(out)
