"""A server out of reach: reading stops, nothing spins, nobody gives up, and all goes on by itself."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from tests.chaos.proxy import Delay, Fault, Hang, Proxy, Refuse, Reset, Sound, Trickle
from tests.chaos.rounds import SERVERS, Proxies, proxied
from tests.isolation import Place
from tests.orders import orders
from tests.record import Tally, check, settled, until
from tests.workers import impatient, working

pytestmark = pytest.mark.anyio

AWAY_S = 4.0
#: Connections in that time, of a worker whose pauses double from 50 ms: two tasks may each try, and each of
#: a client's two connections. One that spins makes thousands.
ATTEMPTS_MAX = 40
BATCH, IN_FLIGHT = 5, 2


async def at_most(count: Callable[[], Awaitable[int]], limit: int, within_s: float) -> int:
    """Look for a while; gives the most that was seen. :raises AssertionError: more than the limit was"""
    most = 0
    with anyio.move_on_after(within_s):
        while True:
            most = max(most, await count())
            assert most <= limit
            await anyio.sleep(0.02)
    return most


@pytest.mark.parametrize("fault", [Refuse(), Reset(), Hang()])
async def test_without_postgres_reading_stops_and_goes_on_by_itself(
    place: Place, fault: Fault
) -> None:
    narrow = impatient(place).having(
        WORKER_BATCH_SIZE=str(BATCH), WORKER_BATCHES_IN_FLIGHT=str(IN_FLIGHT)
    )
    async with proxied(narrow) as (through, proxies):
        async with working(through) as events:
            await place.publish(orders(range(3)))
            await settled(place)
            await proxies.postgres.inflict(fault)
            await place.publish(orders(range(3, 100)))
            await events.wait_for("dependency.lost", dependency="postgres")
            assert await at_most(place.pending, BATCH * IN_FLIGHT, within_s=2) > 0
            await proxies.postgres.inflict(Sound())
            await settled(place)
        assert await check(place, in_order=False) == Tally(100)


@pytest.mark.parametrize("fault", [Reset(), Hang()])
@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_that_is_away_is_tried_now_and_then_and_for_ever(
    place: Place, server: str, fault: Fault
) -> None:
    async with proxied(impatient(place)) as (through, proxies):
        proxy: Proxy = getattr(proxies, server)
        async with working(through) as events:
            await place.publish(orders(range(3)))
            await settled(place)
            await proxy.inflict(fault)
            await place.publish(orders(range(3, 20)))
            await events.wait_for("dependency.lost", dependency=server, state="down")
            before = proxy.attempts
            await anyio.sleep(AWAY_S)
            assert 0 < proxy.attempts - before <= ATTEMPTS_MAX
            await proxy.inflict(Sound())
            await settled(place)
        assert await check(place, in_order=False, claims=server != "redis") == Tally(20)


async def test_a_read_that_blocks_on_a_dead_connection_is_given_up_for_another(
    place: Place,
) -> None:
    """Redis is well, and only the reader's connection leads nowhere, as after a firewall forgot it."""
    async with proxied(impatient(place), record=True) as (through, proxies):
        async with working(through):
            await place.publish(orders(range(3)))
            await settled(place)
            await proxies.redis.inflict(Hang(), connection=reader_of(proxies))
            await place.publish(orders(range(3, 20)))
            await settled(place, within_s=15)
        assert await check(place) == Tally(20)


def reader_of(proxies: Proxies) -> int:
    """The number of the connection that read last."""
    reads = [it.connection for it in proxies.redis.flights if b"XREADGROUP" in it.data]
    return reads[-1]


@pytest.mark.parametrize("fault", [Delay(0.05), Trickle(64, 0.001)])
@pytest.mark.parametrize("server", SERVERS)
async def test_a_slow_server_makes_the_work_slow_and_not_wrong(
    place: Place, server: str, fault: Fault
) -> None:
    patient = place.having(WORKER_BATCH_SIZE="20")
    async with proxied(patient) as (through, proxies):
        await getattr(proxies, server).inflict(fault)
        await place.publish([*orders(range(60)), *orders(range(20)), {"side": "hold"}])
        async with working(through) as events:
            await settled(place)
        assert not events.of("dependency.lost", dependency=server)
    assert await check(place) == Tally(60, 20, 1)


async def test_influxdb_that_answers_slowly_holds_up_points_and_not_orders(place: Place) -> None:
    async with proxied(impatient(place)) as (through, proxies):
        await proxies.influxdb.inflict(Delay(1.0))  # longer than a write of points may take
        async with working(through) as events:
            await place.publish(orders(range(50)))
            await events.wait_for("dependency.lost", dependency="influxdb")
            await until(lambda: recorded(place, 50), within_s=10)
            await proxies.influxdb.inflict(Sound())
            await settled(place)
        assert await check(place) == Tally(50)


async def recorded(place: Place, count: int) -> bool:
    return len(await place.fetch("SELECT FROM outcomes")) == count and await place.pending() == 0
