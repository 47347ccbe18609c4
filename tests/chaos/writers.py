"""Programs that use the folder: careful ones, slow ones, and such that rewrite what is on its way."""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from chaos.witness import Digests
from s3spool.s3.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1024 * 1024
SMALL_BYTES, MEDIUM_BYTES = (0, 4096), (150 * 1024, 700 * 1024)
LARGE_BYTES = 5 * MIB, 17 * MIB  # the daemons of these tests send them in parts of 5 MiB
REMEMBERED = 400  # of the names dropped last, which are dropped again, rewritten, appended to
OPEN_AT_ONCE = 12
THOUGHT_OF = 8  # of the names dropped last, one that is opened and written to later
SUFFIXES = ("", "", "", ".json", " with spaces", "-ü", "-\u65e5\u672c", "\nnewline", "%2e")


@dataclass(slots=True)
class File:
    """One name, and the states in which its writers have left it."""

    states: list[Digests] = field(default_factory=list)
    large: bool = False
    open: bool = False  #: a writer has it open now
    may_be_lost: bool = False  #: written to in the instant of its removal, which docs/guarantees.md excludes

    @property
    def latest(self) -> Digests:
        return self.states[-1]


@dataclass(slots=True)
class _Open:
    """A writer that takes its time."""

    path: str
    stream: IO[Any]
    rest: bytes
    whole: bytes
    begun: bool = True  #: not: it has not written anything yet


class Writers:
    """One thread. A state is noted before it can be seen; between two acts every closed file is consistent."""

    def __init__(self, folder: Path, rng: random.Random, *, large_share: float = 0.004) -> None:
        self.files: dict[str, File] = {}
        self.pending: set[str] = set()  #: names whose latest state the oracle has not seen arrive
        self.acts = 0
        self.states = 0
        self.written_bytes = 0
        self._folder = folder
        self._outside = folder.with_name("outside")  # the same file system, but not watched
        self._outside.mkdir(exist_ok=True)
        self._rng = rng
        self._large_share = large_share
        self._recent: deque[str] = deque(maxlen=REMEMBERED)
        self._open: list[_Open] = []
        self._keys: dict[str, str] = {}
        self._last_large: str | None = None
        acts: list[tuple[int, Callable[[], None]]] = [
            (55, self._rename_in),
            (14, self._write_in_place),
            (3, self._move_tree_in),
            (8, self._replace),
            (6, self._rewrite),
            (4, self._append),
            (4, self._begin_slowly),
            (2, self._begin_rewriting_slowly),
            (4, self._open_and_think),
            (6, self._end_slowly),
        ]
        self._weights = [weight for weight, _ in acts]
        self._acts = [act for _, act in acts]

    def act(self) -> None:
        self.acts += 1
        self._rng.choices(self._acts, self._weights)[0]()

    def act_on_large(self) -> None:
        """Drop a large file, or replace the last one, which may be on its way."""
        path = self._last_large
        if path is None or self._rng.random() < 0.5:
            path = self._last_large = self._name()
        self._replace_with(path, self._content(LARGE_BYTES))

    def drop_medium(self) -> str:
        """A file that is read twice: for its checksum, then for the body."""
        path = self._name()
        self._replace_with(path, self._content(MEDIUM_BYTES))
        return path

    def rewrite_slowly(self, path: str) -> None:
        """Half of it; the rest comes later."""
        self._open_slowly(path, "r+b", self._content(MEDIUM_BYTES))

    def end(self) -> None:
        """All slow writers come to their end."""
        while self._open:
            self._end_slowly()

    def path_of(self, key: str) -> str | None:
        """The name under which its content was dropped; a file that made room for another one is sent as NAME.1."""
        path = self._keys.get(key)
        if path is None:
            stem, dot, number = key.rpartition(".")
            path = self._keys.get(stem) if dot and number.isdigit() else None
        return path

    @staticmethod
    def key_of(path: str) -> str:
        return key_of(path, "")

    def _name(self) -> str:
        number = len(self.files)
        name = f"{number % 7}/{number // 500}/{number:06d}{self._rng.choice(SUFFIXES)}"
        self._keys[self.key_of(name)] = name
        self.files[name] = File()
        return name

    def _content(self, *sizes: tuple[int, int]) -> bytes:
        size = self._rng.randint(*self._rng.choice(sizes))
        self.written_bytes += size
        return self._rng.randbytes(size)

    def _any(self) -> bytes:
        if self._rng.random() < self._large_share:
            return self._content(LARGE_BYTES)
        return self._content(MEDIUM_BYTES) if self._rng.random() < 0.01 else self._content(SMALL_BYTES)

    def _expect(self, path: str, content: bytes) -> File:
        """From now on this state may be found."""
        file = self.files[path]
        file.states.append(Digests.of(content))
        file.large = len(content) > LARGE_BYTES[0]
        self.pending.add(path)
        self._recent.append(path)
        self.states += 1
        return file

    def _old(self) -> str | None:
        """A name that was used lately and that nobody has open."""
        path = self._rng.choice(self._recent) if self._recent else None
        return None if path is None or self.files[path].open else path

    def _at(self, path: str) -> Path:
        place = self._folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _rename_in(self) -> None:
        path, content = self._name(), self._any()
        self._replace_with(path, content)

    def _replace(self) -> None:
        if path := self._old():
            self._replace_with(path, self._any())

    def _replace_with(self, path: str, content: bytes) -> None:
        place = self._at(path)
        hidden = place.with_name(f".{len(self.files)}.part")
        hidden.write_bytes(content)
        self._expect(path, content).may_be_lost = False
        hidden.rename(place)

    def _write_in_place(self) -> None:
        path, content = self._name(), self._any()
        self._expect(path, content)
        self._at(path).write_bytes(content)

    def _move_tree_in(self) -> None:
        tree = self._outside / f"tree-{self.acts}"
        for index in range(self._rng.randint(1, 12)):
            content = self._content(SMALL_BYTES)
            path = f"tree-{self.acts}/{index % 3}/{index}"
            place = self._outside / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            self._keys[self.key_of(path)] = path
            self.files[path] = File()
            self._expect(path, content)
        tree.rename(self._folder / tree.name)

    def _rewrite(self) -> None:
        """In place, whatever is happening to it."""
        path = self._old()
        if path and self._at(path).exists():
            self._write(path, "r+b", self._any())

    def _append(self) -> None:
        path = self._old()
        place = path and self._at(path)
        if not path or not place or not place.exists():
            return
        try:
            before = place.read_bytes()
        except FileNotFoundError:
            return  # taken and removed in this moment
        if Digests.of(before) == self.files[path].latest:
            self._write(path, "r+b", before + self._content((1, 2000)))

    def _write(self, path: str, mode: str, content: bytes) -> None:
        try:
            stream = self._at(path).open(mode)
        except FileNotFoundError:
            return
        with stream:
            self._expect(path, content)
            stream.write(content)
            stream.truncate()
            stream.flush()
            self._note_removal(path, stream)

    def _begin_slowly(self) -> None:
        path, content = self._name(), self._any()
        self._open_slowly(path, "wb", content)

    def _begin_rewriting_slowly(self) -> None:
        path = self._old()
        if path and self._at(path).exists():
            self._open_slowly(path, "r+b", self._content(SMALL_BYTES, MEDIUM_BYTES))

    def _open_and_think(self) -> None:
        """Open one that may be on its way, and write when it may be gone."""
        path = self._recent[-self._rng.randint(1, min(THOUGHT_OF, len(self._recent)))] if self._recent else None
        if path is not None and path != self._last_large and not self.files[path].open:
            self.open_and_think(path)

    def open_and_think(self, path: str) -> None:
        """The whole content comes later."""
        if len(self._open) >= OPEN_AT_ONCE:
            return
        try:
            stream = self._at(path).open("r+b")
        except FileNotFoundError:
            return
        content = self._content(SMALL_BYTES)
        self.files[path].open = True
        self._open.append(_Open(path, stream, content, content, begun=False))

    def _open_slowly(self, path: str, mode: str, content: bytes) -> None:
        if len(self._open) >= OPEN_AT_ONCE:
            return
        try:
            stream = self._at(path).open(mode)
        except FileNotFoundError:
            return
        half = len(content) // 2
        self._expect(path, content).open = True
        stream.write(content[:half])
        stream.flush()
        self._note_removal(path, stream)
        self._open.append(_Open(path, stream, content[half:], content))

    def _end_slowly(self) -> None:
        if not self._open:
            return
        one = self._open.pop(self._rng.randrange(len(self._open)))
        with one.stream:
            if not one.begun:
                self._expect(one.path, one.whole)
            one.stream.write(one.rest)
            one.stream.truncate()
            if not one.begun:
                one.stream.flush()
                self._note_removal(one.path, one.stream)
        self.files[one.path].open = False

    def _note_removal(self, path: str, stream: IO[Any]) -> None:
        """Whether the file was taken away between our look at it and the first change to it.

        From that change on the daemon has to notice: this must be asked right after it.
        """
        status = os.fstat(stream.fileno())
        try:
            here = os.stat(self._folder / path)
        except FileNotFoundError:
            here = None
        moved = here is None or (here.st_dev, here.st_ino) != (status.st_dev, status.st_ino)
        self.files[path].may_be_lost = self.files[path].may_be_lost or moved
