"""A chaos that finds nothing proves something only if it finds what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos.campaign import Campaign
from chaos.mutants import program
from chaos.node_campaign import NodeCampaign

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

ROUNDS, ACTS = 30, 100


@pytest.mark.parametrize("kind", ["credulous", "careless", "hasty"])
def test_a_daemon_that_breaks_the_promise_is_found_out(kind: str, tmp_path: Path, chaos_seed: int) -> None:
    """Within some lives, by the same oracle among the same faults."""
    with Campaign(tmp_path, "delete", chaos_seed, program=program(kind)) as campaign:
        assert any(_complains(campaign) for _ in range(ROUNDS))


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["credulous", "careless", "hasty node"])
def test_nodes_that_break_the_promise_are_found_out(kind: str, tmp_path: Path, chaos_seed: int) -> None:
    """The same, while they run."""
    with NodeCampaign(tmp_path, "delete", chaos_seed, program=program(kind)) as campaign:
        assert any(_complains(campaign) for _ in range(ROUNDS))


def _complains(campaign: Campaign | NodeCampaign) -> bool:
    try:
        campaign.round(ACTS)
    except AssertionError as complaint:
        return "Verdict(" in str(complaint)
    return False
