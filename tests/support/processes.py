"""Programs that run to their end."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

WAIT_S = 60.0


def finished(
    *command: str | Path, check: bool = False, timeout: float = WAIT_S, **options: Any
) -> subprocess.CompletedProcess[str]:
    """With what the program said, as text."""
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=timeout, **options)
