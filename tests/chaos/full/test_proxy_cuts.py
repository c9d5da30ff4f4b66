"""Every conversation of the mixed batch is cut after every byte of it; the outcomes stay right."""

from collections.abc import Callable

import pytest

from tests.chaos.cuts import every_byte, reached, shuffled
from tests.chaos.proxy import Direction
from tests.chaos.rounds import SERVERS, conversations, lanes
from tests.servers import Servers

pytestmark = pytest.mark.anyio

PARTS = 8  #: for several processes to share


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("server", SERVERS)
async def test_a_conversation_may_be_cut_after_any_byte(
    clean_servers: Servers,
    told: Callable[[str], None],
    server: str,
    direction: Direction,
    part: int,
) -> None:
    async with lanes(clean_servers) as all_lanes:
        which = (server, direction)
        cuts = every_byte({which: (await conversations(all_lanes))[which]})[part::PARTS]
        done = await reached(all_lanes, shuffled(cuts, seed=1))
    told(f"bytes after which a conversation was cut: {dict(done)} of {len(cuts)}")
