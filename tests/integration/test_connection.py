"""How we talk to Redis: what a connection that broke says."""

from typing import Any, cast

import pytest
from anyio import lowlevel
from redis import exceptions

from streams.connection import connect
from tests.isolation import Place

pytestmark = pytest.mark.anyio


async def test_a_connection_that_redis_has_closed_is_an_error_that_passes(place: Place) -> None:
    """uvloop raises RuntimeError where it finds a closed socket; a worker would end of it."""
    async with connect(place.settings.redis_address, timeout_ms=10_000) as redis:
        link = cast("Any", await redis.connection_pool.get_connection())
        link._writer.transport.abort()  # noqa: SLF001 - as the kernel does when the server is killed
        await lowlevel.checkpoint()
        with pytest.raises(exceptions.ConnectionError):
            await link.send_packed_command(link.pack_command("PING"))
        await redis.connection_pool.release(link)
        assert await cast("Any", redis.ping())
