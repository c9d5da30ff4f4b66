"""Each server is out of reach in each way for a while; the outcomes stay right.

Every other worker dies of it, the others go on by themselves.
"""

from collections.abc import Callable

import pytest

from tests.chaos.passing_faults import every_kind, suffered
from tests.chaos.rounds import lanes
from tests.servers import Servers

pytestmark = pytest.mark.anyio

BEGINS = 3


async def test_a_server_may_be_out_of_reach_in_any_way_for_a_while(
    clean_servers: Servers, told: Callable[[str], None]
) -> None:
    async with lanes(clean_servers) as all_lanes:
        begun = await suffered(all_lanes, await every_kind(all_lanes, BEGINS))
    told(f"faults of connections: {dict(begun)}")
