"""Three nodes with one folder and one ledger: kills, stops, faults of S3 and of the database, and writers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from chaos.figures import minutes
from chaos.node_campaign import NodeCampaign
from chaos.steps import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaos.figures import Figures

MINUTES, ACTS = 4.0, 150

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.timeout(60 * minutes(MINUTES) + 900)]


@pytest.mark.parametrize("action", ACTIONS)
def test_three_nodes(action: str, tmp_path: Path, chaos_seed: int, report: Callable[[Figures], None]) -> None:
    """Whatever happens, each file is in the bucket or in the folder, whole, and at last all are in the bucket."""
    ends = time.monotonic() + 60 * minutes(MINUTES) / len(ACTIONS)
    with NodeCampaign(tmp_path, action, chaos_seed) as campaign:
        while time.monotonic() < ends:
            campaign.round(ACTS)
        report(campaign.finish())
