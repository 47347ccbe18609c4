"""The end of `s3spool run --once`: each file was sent, or failed by its own fault."""

from __future__ import annotations

from s3spool.daemon.file_states import FileStates
from s3spool.errors import LedgerError
from s3spool.logs.units import bar

LOOK_S = 0.1
LOOKS = 2  # a file may be between two components at one look


class OnceDone:
    """Looks whether all files were tried. Only the supervisor calls it."""

    def __init__(self, files: FileStates) -> None:
        self._files = files
        self._quiet_looks = 0
        self.left = 0  #: files that were not sent

    def look(self) -> bool:
        """Whether two looks in a row found nothing to do after the first scan."""
        try:
            trying, self.left = self._files.untried()
        except (LedgerError, OSError):
            trying = True
        self._quiet_looks = 0 if trying else self._quiet_looks + 1
        return self._quiet_looks >= LOOKS

    def bar(self, sent_bytes: float, unsent_bytes: int) -> str:
        """The progress so far, for the line on a terminal."""
        return f"{bar(sent_bytes, sent_bytes + unsent_bytes)}, " if sent_bytes + unsent_bytes else ""
