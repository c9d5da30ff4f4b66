"""A connection that is reset while nobody uses it is a server that was away, and no bug of ours."""

import anyio
import pytest
from anyio import lowlevel

from streams.connection import RedisUnavailable, call, connect
from tests.chaos.proxy import Proxy, Reset, Sound
from tests.isolation import Place

pytestmark = pytest.mark.anyio

TURNS_MAX = 8  #: turns of the event loop between the reset and the next command


@pytest.mark.parametrize("turns", range(TURNS_MAX))
async def test_a_reset_just_before_a_command_says_that_redis_is_away(
    place: Place, turns: int
) -> None:
    """uvloop raises RuntimeError for a write in that moment, which ended the worker."""
    async with (
        Proxy.before(place.settings.redis_address) as proxy,
        connect(proxy.url, timeout_ms=5_000) as redis,
    ):
        for _ in range(5):
            await call(redis, "PING")
            await proxy.inflict(Reset())
            for _ in range(turns):
                await lowlevel.checkpoint()
            with pytest.raises(RedisUnavailable):
                await call(redis, "PING")
            await proxy.inflict(Sound())
        with anyio.fail_after(5):
            assert await call(redis, "PING")
