"""Conversations are cut after some of their bytes; the outcomes stay right.

Those are all the bytes that end a message, and others spread evenly. The long form takes every byte.
"""

from collections.abc import Callable

import pytest

from tests.chaos.cuts import boundaries, reached, shuffled, spread
from tests.chaos.rounds import conversations, lanes
from tests.servers import Servers

pytestmark = pytest.mark.anyio

SPREAD = 60


@pytest.mark.long
async def test_a_conversation_may_be_cut_between_messages_and_within(
    clean_servers: Servers, told: Callable[[str], None]
) -> None:
    async with lanes(clean_servers) as all_lanes:
        sound = await conversations(all_lanes)
        cuts = boundaries(sound) | spread(sound, SPREAD)
        done = await reached(all_lanes, shuffled(cuts, seed=1))
    told(f"bytes after which conversations were cut: {dict(done)}")
