"""`after.receipt`: what S3 has confirmed, beside the kept or archived file, for the programs of producers."""

from __future__ import annotations

import contextlib
import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from s3spool.folder import rename
from s3spool.folder.directories import made_below
from s3spool.folder.folder import Folder
from s3spool.folder.lease import Lease, release_lease, take_lease
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.rows import Identity, Receipt, to_text

PREFIX = "user.s3spool."
SUFFIX = ".receipt.json"
_COMPARED = ("bucket", "key", "etag", "checksum", "version_id")
_FILES = 100  # so many may want one name


class ReceiptMarks:
    """Writes extended attributes or files. Used by the post-upload threads."""

    def __init__(self, kind: str, folder: Folder, ledger: LedgerBackend, bucket: str) -> None:
        """`kind` is "", "xattr" or "file"."""
        self._kind = kind
        self._folder = folder
        self._ledger = ledger
        self._bucket = bucket

    def keep(self, receipt: Receipt) -> None:
        """Mark a kept file. Raises OSError, NotAFileError.

        The attributes change the file's ctime. Where a lease shows that nobody could write meanwhile, the ledger takes
        the new one; elsewhere the next scan compares the checksum.
        """
        if self._kind != "xattr":
            return
        fd, status = self._folder.open(receipt.path)
        try:
            if status.st_nlink > 1:
                return  # one inode, several keys: each name would change the ctime of the others
            lease = take_lease(fd)
            try:
                before = Identity.of(os.fstat(fd) if lease is Lease.FREE else status)
                if lease is Lease.BUSY or before != receipt.identity or not self._set_attributes(fd, receipt):
                    return
                after = Identity.of(os.fstat(fd))
            finally:
                if lease is Lease.FREE:
                    release_lease(fd)
        finally:
            os.close(fd)
        if lease is Lease.FREE and after[:4] == before[:4]:
            self._ledger.record_receipt(receipt._replace(identity=after), lambda: None)

    def archive(self, receipt: Receipt, archived: Path, archive: Path) -> None:
        """Mark an archived file. Raises OSError."""
        if not self._kind:
            return
        with made_below(archive, archived) as directory_fd:
            if self._kind == "file":
                self._write_file(directory_fd, archived.name, receipt)
                return
            fd = os.open(archived.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
            try:
                self._set_attributes(fd, receipt)
            finally:
                os.close(fd)

    def _fields(self, receipt: Receipt) -> dict[str, str]:
        uploaded = datetime.fromtimestamp(receipt.uploaded_at, UTC).isoformat(timespec="milliseconds")
        return {
            "bucket": self._bucket,
            "key": receipt.key,
            "etag": receipt.etag,
            "checksum": receipt.checksum,
            "version_id": receipt.version_id,
            "uploaded_at": uploaded.replace("+00:00", "Z"),
        }

    def _set_attributes(self, fd: int, receipt: Receipt) -> bool:
        """False where they are there already: each change of the ctime costs a comparison. Raises OSError."""
        fields = self._fields(receipt)
        if all(_attribute(fd, name) == fields[name] for name in _COMPARED if fields[name]):
            return False
        for name, value in fields.items():
            if value:
                os.setxattr(fd, PREFIX + name, value.encode(errors="surrogateescape"))
            else:
                with contextlib.suppress(OSError):  # an earlier upload may have had a version
                    os.removexattr(fd, PREFIX + name)
        return True

    def _write_file(self, directory_fd: int, name: str, receipt: Receipt) -> None:
        content = {"path": to_text(receipt.path), "bytes": receipt.identity.size, **self._fields(receipt)}
        for number in range(_FILES):
            candidate = rename.cut(name, f".{number}{SUFFIX}" if number else SUFFIX)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                fd = os.open(candidate, flags, 0o666, dir_fd=directory_fd)
            except FileExistsError:
                continue
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(content) + b"\n")
            return
        raise FileExistsError(errno.EEXIST, f"{_FILES} receipts of this name", name)


def _attribute(fd: int, name: str) -> str:
    try:
        return os.getxattr(fd, PREFIX + name).decode(errors="surrogateescape")
    except OSError:
        return ""
