"""Real kills, and every server treated badly, while a producer and a reader go on: about a minute of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.ordeal import Length, ordeal_reported
from tests.servers import Servers
from tests.workers import Workers

pytestmark = pytest.mark.anyio

LENGTH = Length(seconds=40)


@pytest.mark.long
async def test_a_minute_of_kills_and_faults_loses_nothing_and_doubles_nothing(
    small_disk: Path | None,
    own_servers: Servers,
    workers: Workers,
    told: Callable[[str], None],
) -> None:
    await ordeal_reported(own_servers, small_disk, workers, told, LENGTH)
