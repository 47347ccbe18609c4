"""The S3 server of a cluster: it answers after 30 ms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.faults import Delay
from support.faulty import FaultyS3

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        server.script(Delay(0.03), times=None, match="^PUT")
        yield server
