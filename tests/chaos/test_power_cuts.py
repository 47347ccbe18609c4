"""The power goes: whatever was on disk by then counts, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos.figures import longer, rounds
from chaos.power_cuts import PowerCuts
from support.power import CannotMountError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaos.figures import Figures

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900 * longer())]

ROUNDS, FILES = 7, 40
LONGEST_S = 12.0


@pytest.mark.parametrize("apart", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("action", ["delete", "archive", "keep"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_was_synced_survives_the_power(
    kind: str, action: str, tmp_path: Path, chaos_seed: int, report: Callable[[Figures], None], *, apart: bool
) -> None:
    """Synced files stay whole or are in the bucket, receipts survive, the ledger opens, nothing archived is unsent."""
    try:
        cuts = PowerCuts(tmp_path, kind, action, chaos_seed, apart=apart)
    except CannotMountError as exc:
        pytest.skip(f"no loop device here: {exc}")
    with cuts:
        for _ in rounds(ROUNDS, LONGEST_S):
            cuts.round(FILES)
        report(cuts.finish())
