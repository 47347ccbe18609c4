"""A process that stands still, and one that gets no memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from chaos.campaign import Campaign
from chaos.figures import longer, rounds, share_of_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaos.figures import Figures

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 * longer())]

LONG_S = 60.0
FAMINES = 8
MEDDLED = 4


def test_stopped_for_a_minute(tmp_path: Path, chaos_seed: int, report: Callable[[Figures], None]) -> None:
    """SIGSTOP with requests in flight: after SIGCONT the same process sends what was dropped and changed meanwhile."""
    with Campaign(tmp_path, "archive", chaos_seed) as campaign:
        campaign.start()
        pid = campaign.daemon.pid
        campaign.act(150, share=0.1)
        campaign.stop_for(LONG_S * min(1.0, share_of_plan()), acts=600)
        campaign.act(50)
        assert campaign.daemon.pid == pid
        report(campaign.finish())


def test_written_to_under_its_hands(tmp_path: Path, chaos_seed: int, report: Callable[[Figures], None]) -> None:
    """Half rewritten after the look: S3 takes it, the daemon notices, and sends it again. Opened then, and written to
    after the removal: the oracle knows that nobody could have known."""
    with Campaign(tmp_path, "delete", chaos_seed) as campaign:
        lives: Counter[bool] = Counter()
        for number in rounds(MEDDLED, 8.0):
            late = bool(number % 2)
            campaign.meddle(late=late)
            lives[late] += 1
        figures = campaign.finish()
        assert figures.verdict.refused_torn == lives[False]
        assert figures.verdict.excluded == lives[True]
        report(figures)


@pytest.mark.parametrize("action", ["delete", "keep"])
def test_out_of_memory(action: str, tmp_path: Path, chaos_seed: int, report: Callable[[Figures], None]) -> None:
    """Allocations fail at a random moment, then SIGKILL comes: nothing is lost, nothing is torn."""
    with Campaign(tmp_path, action, chaos_seed) as campaign:
        for _ in rounds(FAMINES, 20.0):
            campaign.starve(120)
        report(campaign.finish(sane=False))
