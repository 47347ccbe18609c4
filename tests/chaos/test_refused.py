"""A server, or a proxy before it, that says of every file that it will never take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos.campaign import Campaign
from chaos.figures import longer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaos.figures import Figures

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 * longer())]

ACTS = 150


def test_what_is_refused_for_all_leaves_nobody_parked(
    tmp_path: Path, chaos_seed: int, report: Callable[[Figures], None]
) -> None:
    """Through kills and restarts, whatever the code: when it is over all are sent, and no person has released any."""
    with Campaign(tmp_path, "delete", chaos_seed) as campaign:
        campaign.refuse_all("413", ACTS, kill=True)
        campaign.refuse_all("400 EntityTooLarge", ACTS, kill=True)
        campaign.refuse_all("413", ACTS, kill=False)
        figures = campaign.finish()
        assert figures.parked == 0
        report(figures)
