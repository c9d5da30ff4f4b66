"""The same as `tests.chaos.test_kills` for about fifteen minutes: a thousand faults at least.

ORDERGATE_CHAOS_S sets how many seconds, ORDERGATE_CHAOS_SEED which faults.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.ordeal import Length, ordeal_reported
from tests.servers import Servers
from tests.workers import Workers

pytestmark = pytest.mark.anyio

DURATION_S = 840.0
KILLS_PER_S_MIN = 1.2  #: a thousand in the whole


async def test_a_thousand_kills_and_faults_lose_nothing_and_double_nothing(
    small_disk: Path | None,
    own_servers: Servers,
    workers: Workers,
    told: Callable[[str], None],
) -> None:
    duration_s = float(os.environ.get("ORDERGATE_CHAOS_S") or DURATION_S)
    length = Length(duration_s, kills_min=round(KILLS_PER_S_MIN * duration_s))
    report = await ordeal_reported(own_servers, small_disk, workers, told, length)
    assert report.faults.total() >= length.kills_min
