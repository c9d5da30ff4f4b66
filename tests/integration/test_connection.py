"""How we talk to Redis: what a connection that broke says."""

from typing import Any, cast

import anyio
import pytest
from anyio import lowlevel
from redis import exceptions

from streams.connection import RedisUnavailable, call, connect
from tests.isolation import Place
from worker.embedded import RedisServer

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


async def test_a_client_is_closed_though_its_owner_has_been_cancelled(place: Place) -> None:
    redis = connect(place.settings.redis_address, timeout_ms=10_000)
    links = [cast("Any", await redis.connection_pool.get_connection()) for _ in range(2)]
    for link in links:
        await redis.connection_pool.release(link)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await redis.aclose()
    assert not any(link.is_connected for link in links)


async def test_a_replica_is_left_by_idle_connections_and_those_in_use_are_let_be(
    own_redis: RedisServer,
) -> None:
    async with connect(own_redis.url, timeout_ms=10_000) as redis:
        busy = cast("Any", await redis.connection_pool.get_connection())
        await call(redis, "REPLICAOF", "127.0.0.1", 1)
        idle = cast("Any", await redis.connection_pool.get_connection())
        await redis.connection_pool.release(idle)
        with pytest.raises(RedisUnavailable, match="READONLY"):
            await call(redis, "SET", "key", "value")
        assert (busy.is_connected, idle.is_connected) == (True, False)
        await redis.connection_pool.release(busy)


async def test_closing_does_not_wait_for_a_server_that_takes_nothing_and_is_no_error(
    own_redis: RedisServer,
) -> None:
    redis = connect(own_redis.url, timeout_ms=300)
    link = cast("Any", await redis.connection_pool.get_connection())
    own_redis.pause()
    writer = link._writer  # noqa: SLF001 - what is sent fills the buffers of both ends, and stays
    writer.write(link.pack_command("SET", "key", "x" * 50_000_000)[0])
    with anyio.fail_after(10):
        await redis.aclose()
    assert writer.transport.is_closing()
    assert writer.transport.get_write_buffer_size() == 0
