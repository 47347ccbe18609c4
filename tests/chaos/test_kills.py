"""Kills, faults and writers, all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos.campaign import Campaign
from chaos.figures import longer, rounds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaos.figures import Figures

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 * longer())]

ROUNDS, ACTS = 75, 110
LONGEST_S = 103.0


@pytest.mark.parametrize("action", ["delete", "archive", "keep"])
def test_killed_again_and_again_among_faults(
    action: str, tmp_path: Path, chaos_seed: int, report: Callable[[Figures], None]
) -> None:
    """Whatever happens, each file is in the bucket or in the folder, whole, and at last all are in the bucket."""
    with Campaign(tmp_path, action, chaos_seed) as campaign:
        for _ in rounds(ROUNDS, LONGEST_S):
            campaign.round(ACTS)
        report(campaign.finish())
