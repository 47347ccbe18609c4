"""Lists the files of one directory for a scan, and restores those whose removal was interrupted."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import structlog

from s3spool.discovery.deep_directories import DeepDirectories
from s3spool.discovery.pending_directories import PendingDirectories
from s3spool.errors import EXHAUSTED
from s3spool.folder.directories import NotAFileError, listed, opened_directory
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import Folder, original, removed_by
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.queries import LedgerReader
from s3spool.ledger.rows import Identity

CHECK_ENTRIES = 1000  # after this many entries, check that the directory still has its name
log = structlog.get_logger()

FoundFile = tuple[str, Identity]


class DirectoryFiles:
    """Used by the scan thread, and by one thread per mount."""

    def __init__(self, folder: Folder, ledger: LedgerBackend, deep: DeepDirectories, *, recursive: bool) -> None:
        self._folder = folder
        self._ledger = ledger
        self._deep = deep
        self._recursive = recursive
        self._excluded = 0

    def take_excluded(self) -> int:
        """How many names include and exclude left out since the last call; a directory counts as one."""
        excluded, self._excluded = self._excluded, 0
        return excluded

    def listed(
        self, directory: str, pending: PendingDirectories, reader: LedgerReader, names: FileFilter
    ) -> Iterator[FoundFile]:
        """Yield the files of one directory; add its subdirectories to `pending`.

        Raises OSError, NotAFileError, LedgerError.
        """
        below: list[str] = []
        # Not by path: a directory may be replaced by a symlink while its files are listed.
        with opened_directory(self._folder.root, directory) as fd, listed(fd) as entries:
            for number, entry in enumerate(entries, 1):
                if number % CHECK_ENTRIES == 0 and not self._is_still(directory, fd):
                    return  # renamed or removed: the remaining paths would be wrong
                path = directory + entry.name
                if entry.is_file(follow_symlinks=False) and self._accepts(path, names):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # removed since it was listed
                    yield path, Identity.of(status)
                elif entry.is_dir(follow_symlinks=False):
                    if self._recursive and self._enters(path, names):
                        below.append(entry.name)
                    if len(below) == PendingDirectories.CHUNK:
                        pending.add(directory, below)
                        below = []
                elif removed_by(entry.name) is not None:
                    self._restore(path, reader)
        if self._ledger.claims is not None:
            random.shuffle(below)  # several daemons walk in different orders, and seldom want the same files
        pending.add(directory, below)

    def _is_still(self, directory: str, fd: int) -> bool:
        try:
            with opened_directory(self._folder.root, directory) as now:
                return os.path.samestat(os.fstat(now), os.fstat(fd))
        except NotAFileError:
            return False
        except OSError as exc:
            if exc.errno in EXHAUSTED:
                raise  # the scan is repeated: the rest of the directory would be missed
            return False

    def _accepts(self, path: str, names: FileFilter) -> bool:
        accepted = names.accepts_file(path)
        self._excluded += not accepted
        return accepted

    def _enters(self, path: str, names: FileFilter) -> bool:
        if not names.enters_directory(path):
            self._excluded += 1
            return False
        if names.too_deep(path):
            self._deep.note(path)
            return False
        return True

    def _restore(self, path: str, reader: LedgerReader) -> None:
        """Rename back a file that a process which died was removing; the watch or the next scan finds it."""
        owner = removed_by(path.rpartition("/")[2])
        if owner and owner != self._ledger.owner and reader.is_alive(owner):
            return
        name = original(path)
        known = reader.known([name]).get(name)
        receipt = known and known.receipt
        sent = receipt and receipt.after == "delete" and receipt.destination == self._ledger.destination
        with contextlib.suppress(OSError):
            self._folder.restore(path, receipt.identity if receipt and sent else None)


def warn_unreadable(directory: str, exc: OSError) -> None:
    """The scan goes on without this directory; raises `exc` if it is not a fault of the directory."""
    if exc.errno in EXHAUSTED:
        raise exc
    log.warning("scan.failed", path=directory, error=exc.strerror or str(exc), reason="unreadable directory")
