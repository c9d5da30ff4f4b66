"""What a worker does beside its orders: trimming what is settled, telling of losses and of stalls."""

import signal

import pytest
from redis.asyncio import Redis

from streams.connection import connect
from streams.group import Group
from tests.isolation import Place, isolated
from tests.orders import order, orders
from tests.record import Tally, check, settled, until
from tests.servers import Servers, ServerUnavailable
from tests.workers import Workers, drain, impatient, working
from worker.errors import EmbeddedUnavailable
from worker.programs import valkey

pytestmark = pytest.mark.anyio

FAR_MS = 2**62  #: later than any entry


def group_of(place: Place, name: str = "order-workers") -> Group:
    address = place.settings.redis_address
    return Group(address, place.stream, name, "looker", timeout_ms=10_000, block_ms=10)


@pytest.fixture(params=["the session's Redis", "the newest"])
def redis_url(request: pytest.FixtureRequest, own_servers: Servers) -> str:
    """Both: Redis before version 7 does not count what is added to a stream."""
    try:
        program = valkey() if request.param == "the newest" else None
    except EmbeddedUnavailable as reason:
        raise ServerUnavailable(str(reason)) from reason
    return own_servers.own_redis(program=program).url


async def length(place: Place) -> int:
    return await place.command("XLEN", place.stream)


async def test_settled_entries_are_trimmed_when_they_are_old(place: Place) -> None:
    await place.publish(orders(range(500)), [f"{1000 + n}-0" for n in range(500)])
    async with working(place.having(WORKER_RETENTION="1h")) as events:
        await settled(place)
    await place.publish([order(0), order(600)])
    async with working(place.having(WORKER_RETENTION="1h")) as events:
        await events.wait_for("entries.trimmed")
        await settled(place)
    rows = await place.fetch("SELECT FROM outcomes")
    assert len(rows) == 502
    assert 2 <= await length(place) <= 102  # Redis trims whole nodes, of 100 entries each


async def test_nothing_is_trimmed_unless_it_is_asked_for(place: Place) -> None:
    await place.publish(orders(range(300)), [f"{1000 + n}-0" for n in range(300)])
    await drain(place)
    async with working(place):
        await place.publish([order(301)])
        await settled(place)
    assert await length(place) == 301


@pytest.mark.parametrize(
    "holder", ["another group", "a pending entry", "a new group", "a group set back"]
)
async def test_what_any_group_has_not_finished_is_never_trimmed(place: Place, holder: str) -> None:
    sent = await place.publish(orders(range(1000)), [f"9-{n}" for n in range(1000)])
    await place.command("XGROUP", "CREATE", place.stream, "others", "0")
    first = 0
    if holder != "a new group":
        read = ("XREADGROUP", "GROUP", "others", "x", "COUNT", 700, "STREAMS", place.stream, ">")
        await place.command(*read)
        first = 700 if holder == "another group" else 650
        await place.command("XACK", place.stream, "others", *sent[:first], *sent[first + 1 :])
    if holder == "a group set back":
        first = 300
        await place.command("XGROUP", "SETID", place.stream, "others", sent[first])
    await drain(place)
    group = group_of(place)
    while await group.trim(FAR_MS):
        pass
    await group.aclose()
    left = await place.command("XRANGE", place.stream, "-", "+")
    assert sent[first:] == [entry_id for entry_id, _ in left][-len(sent[first:]) :]
    assert len(left) <= 1000 - first + 100


async def test_nothing_is_trimmed_without_a_group(place: Place) -> None:
    await place.publish(orders(range(300)))
    group = group_of(place)
    assert await group.trim(FAR_MS) == 0
    await group.aclose()


async def test_entries_that_went_before_they_were_read_are_counted_and_told(
    clean_servers: Servers, redis_url: str
) -> None:
    async with (
        isolated(clean_servers, redis_url=redis_url) as place,
        connect(redis_url, timeout_ms=10_000) as redis,
    ):
        counts = await counts_what_is_added(redis)
        await place.publish(orders(range(10)))
        await drain(place)
        assert await lost(place) == (0 if counts else None)
        await place.publish(orders(range(10, 30)))
        await place.command("XTRIM", place.stream, "MAXLEN", 15)
        assert await lost(place) == (5 if counts else None)
        async with working(place) as events:  # Redis' own lag is 0 once it has read past the gap
            if counts:
                await events.wait_for("entries.lost_before_reading", entries=5)
            await settled(place)
        assert await lost(place) == (5 if counts else None)


async def counts_what_is_added(redis: Redis) -> bool:
    info = await redis.info("server")
    return int(str(info["redis_version"]).partition(".")[0]) >= 7


async def lost(place: Place) -> int | None:
    group = group_of(place)
    progress = await group.progress()
    await group.aclose()
    return progress.lost


async def test_a_group_made_again_takes_what_was_trimmed_after_its_settlement_for_no_loss(
    clean_servers: Servers, redis_url: str
) -> None:
    async with isolated(clean_servers, redis_url=redis_url) as place:
        await place.publish(orders(range(500)))
        await drain(place)
        await place.command("XTRIM", place.stream, "MAXLEN", 100)
        await place.redis.xgroup_destroy(place.stream, place.settings.group)
        await drain(place)
        assert await lost(place) in (0, None)
        group = group_of(place)
        progress = await group.progress()
        await group.aclose()
        assert (progress.settled, progress.pending) == (100, 0)


async def test_a_stall_is_told_and_what_was_taken_over_meanwhile_is_redelivered(
    place: Place, workers: Workers
) -> None:
    place = impatient(place)
    async with place.orders_locked():
        await place.publish(orders(range(50)))
        sleeper = await workers.start(place)
        await until(lambda: holds(place, 50))
        sleeper.signal(signal.SIGSTOP)
    await drain(place)
    assert await check(place) == Tally(50)
    sleeper.signal(signal.SIGCONT)
    await sleeper.logged("worker.stalled")
    sleeper.signal(signal.SIGTERM)
    assert await sleeper.ended() == 0
    assert await check(place) == Tally(50)


async def holds(place: Place, entries: int) -> bool:
    return await place.pending() == entries
