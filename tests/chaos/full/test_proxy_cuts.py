"""Every conversation of the mixed batch is cut after every byte of it; the outcomes stay right."""

import pytest

from tests.chaos.cuts import CutAt, reached, shuffled
from tests.chaos.proxy import Direction
from tests.chaos.rounds import SERVERS, lanes
from tests.servers import Servers

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("server", SERVERS)
async def test_a_conversation_may_be_cut_after_any_byte(
    clean_servers: Servers, capsys: pytest.CaptureFixture[str], server: str, direction: Direction
) -> None:
    async with lanes(clean_servers) as all_lanes:
        length = (await all_lanes[0].lengths())[server][direction]
        cuts = [CutAt(server, direction, after) for after in range(length + 1)]
        done = await reached(all_lanes, shuffled(cuts, seed=1))
    with capsys.disabled():
        print(f"\nbytes after which a conversation was cut: {dict(done)} of {length}")
