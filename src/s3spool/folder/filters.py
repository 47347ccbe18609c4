"""Which files are sent: the include and exclude globs of [watch]."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from s3spool.folder.folder import REMOVING, REMOVING_SHARED
from s3spool.folder.marker import MARKER

_PLAIN = re.compile(r"\*?[^*?\[/]+|[^*?\[/]+\*")  # "*.part", ".*", "4913"


class FileFilter:
    """Decides by relative path. Immutable, so thread-safe.

    A pattern without a slash matches one path component: an exclude matches any component (".*" excludes
    ".git/config" too), an include matches the last one. A pattern with a slash matches the whole relative path.
    `*` and `?` stop at slashes, `**` does not. Excludes ignore case: Windows programs use either for temporary names.
    """

    def __init__(
        self, include: Sequence[str], exclude: Sequence[str], *, too_deep: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`too_deep`: whether every key below a directory would be too long; such a directory is not listed."""
        self.too_deep = too_deep
        self._everything = "*" in include
        self._include = _compiled(include)
        self._exclude = _Exclude([*exclude, f"{REMOVING}*", REMOVING_SHARED, f"{MARKER}*"])

    def accepts_file(self, path: str) -> bool:
        return not self._exclude.match(path) and (self._everything or self._include.match(path) is not None)

    def enters_directory(self, path: str) -> bool:
        """Whether files below this directory may be accepted."""
        return not self._exclude.match(path)

    def excluded_by(self, path: str) -> str:
        """The pattern that excludes it, or ""."""
        return next((pattern for pattern in self._exclude.patterns if _Exclude([pattern]).match(path)), "")


class _Exclude:
    """Excluded patterns; everything below an excluded directory is excluded too."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = patterns
        lower = [pattern.strip("/").lower() for pattern in patterns]
        # Most patterns are a whole name, a prefix or a suffix: comparing takes a fifth of a regular expression's time.
        plain = {p for p in lower if _PLAIN.fullmatch(p)}
        self._names = frozenset(p for p in plain if "*" not in p)
        self._begins = tuple(p[:-1] for p in plain if p.endswith("*"))
        self._ends = tuple(p[1:] for p in plain if p.startswith("*"))
        others = [p for p in lower if p not in plain]
        self._others = _compiled(others, below=r"(?:/.*)?") if others else None

    def match(self, path: str) -> bool:
        path = path.lower()
        for name in path.split("/"):
            if name in self._names or name.startswith(self._begins) or name.endswith(self._ends):
                return True
        return self._others is not None and self._others.match(path) is not None


def _compiled(patterns: Sequence[str], below: str = "") -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern_of(patterns)}){below}\Z", re.DOTALL)


def pattern_of(patterns: Sequence[str]) -> str:
    """A regular expression, without groups, that matches what any of these globs matches."""
    whole = [_translate(p.strip("/")) for p in patterns if "/" in p.strip("/")]
    single = [_translate(p.strip("/")) for p in patterns if "/" not in p.strip("/")]
    if single:
        whole.append(f"(?:.*/)?(?:{'|'.join(single)})")
    return "|".join(whole) or "(?!)"


def _translate(glob: str) -> str:
    out: list[str] = []
    star = -1  # where in `out` the last `*` stands, if what follows it has not crossed a slash
    for token in re.findall(r"\*\*/?|\*|\?|\[!?\]?[^]]*\]|.", glob, re.DOTALL):
        if token == "*" and star >= 0:  # noqa: S105 - a glob, not a password
            # No backtracking between two stars: the first match is as good as any other one, and trying all takes
            # seconds for a name like "-----...".
            out[star:] = [f"(?>[^/]*?{''.join(out[star + 1 :])})"]
        if token in {"/", "**", "**/"}:
            star = -1
        if token == "**/":  # noqa: S105 - as above
            out.append("(?:.*/)?")
        elif token == "**":  # noqa: S105 - as above
            out.append(".*")
        elif token == "*":  # noqa: S105 - as above
            star = len(out)
            out.append("[^/]*")
        elif token == "?":  # noqa: S105 - as above
            out.append("[^/]")
        elif token.startswith("[") and len(token) > 2:  # noqa: PLR2004 - "[x]"
            out.append(_class(token[1:-1]))
        else:
            out.append(re.escape(token))
    return "".join(out)


def _class(inner: str) -> str:
    """`[...]` as a regular expression: never matches a slash, and has no special characters but `-`."""
    negated = inner.startswith("!")
    inner = inner.removeprefix("!")
    members = []
    for first, last, single in re.findall(r"(.)-(.)|(.)", inner, re.DOTALL):
        if single:
            members.append(re.escape(single))
        elif first <= last:
            members.append(f"{re.escape(first)}-{re.escape(last)}")
    if not members:
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[{'^' if negated else ''}{''.join(members)}]"
