"""Redis away: nothing is lost or doubled, and the worker goes on by itself when it is back."""

from collections.abc import Callable
from itertools import count

import anyio
import pytest
from anyio import to_thread
from redis.asyncio import Redis

from scripts.replay.synthetic import synthetic_orders
from streams.connection import connect
from tests.isolation import Place, isolated
from tests.orders import order, orders
from tests.record import Tally, check, claim_key, points_paid, settled, until
from tests.servers import Servers
from tests.workers import Events, Workers, drain, impatient, working
from worker.embedded import RedisServer

pytestmark = pytest.mark.anyio

TRAFFIC = list(synthetic_orders(200, 60, seed=5))
EXPECTED = Tally(200, 60)
Step = Callable[[RedisServer], None]


FAULTS = {
    "stopped": (RedisServer.stop, RedisServer.start),
    "killed": (RedisServer.kill, RedisServer.start),
    "hung": (RedisServer.pause, RedisServer.resume),
}
faults = pytest.mark.parametrize(("down", "up"), FAULTS.values(), ids=FAULTS)


async def redis_answers(place: Place) -> bool:
    await place.command("PING")
    return True


@faults
async def test_nothing_is_lost_or_doubled_while_redis_is_away(
    clean_servers: Servers, own_redis: RedisServer, down: Step, up: Step
) -> None:
    async with isolated(clean_servers, redis_url=own_redis.url, WORKER_BATCH_SIZE="9") as place:
        await place.publish(TRAFFIC[:150])
        async with working(impatient(place)) as events:
            await until(lambda: place.fetch("SELECT FROM outcomes"))
            await to_thread.run_sync(down, own_redis)
            await events.wait_for("dependency.lost", dependency="redis")
            await to_thread.run_sync(up, own_redis)
            await until(lambda: redis_answers(place))
            await place.publish(TRAFFIC[150:])
            await settled(place)
        assert await check(place, in_order=False) == EXPECTED


async def test_a_worker_process_outlives_a_redis_that_goes_again_and_again(
    clean_servers: Servers, own_redis: RedisServer, workers: Workers
) -> None:
    async with isolated(clean_servers, redis_url=own_redis.url, WORKER_BATCH_SIZE="9") as place:
        worker = await workers.start(impatient(place))
        for part in range(0, 260, 65):
            await place.publish(TRAFFIC[part : part + 65])
            await to_thread.run_sync(own_redis.kill)
            await to_thread.run_sync(own_redis.start)
            await until(lambda: redis_answers(place))
        await settled(place)
        assert worker.running
        assert await check(place, in_order=False) == EXPECTED


async def test_a_redis_that_is_away_at_the_start_is_waited_for(
    clean_servers: Servers, own_redis: RedisServer
) -> None:
    async with isolated(clean_servers, redis_url=own_redis.url) as place:
        await place.publish(TRAFFIC)
        await to_thread.run_sync(own_redis.stop)
        async with working(place) as events:
            await events.wait_for("dependency.lost", dependency="redis")
            await to_thread.run_sync(own_redis.start)
            await settled(place)
        assert await check(place) == EXPECTED


async def test_an_outage_is_two_events_and_no_spinning(
    clean_servers: Servers, own_redis: RedisServer
) -> None:
    async with isolated(clean_servers, redis_url=own_redis.url) as place:
        async with working(impatient(place)) as events:
            await place.publish([order(1)])
            await settled(place)
            await to_thread.run_sync(own_redis.stop)
            await events.wait_for("dependency.lost", dependency="redis")
            await to_thread.run_sync(own_redis.start)
            await events.wait_for("dependency.recovered", dependency="redis")
        assert len(events.of("dependency.lost", dependency="redis")) == 1
        assert len(events.of("dependency.recovered", dependency="redis")) == 1


@pytest.mark.parametrize("from_the_start", [False, True])
async def test_a_redis_whose_memory_is_full_does_not_stop_a_worker_from_recording(
    clean_servers: Servers, own_redis: RedisServer, *, from_the_start: bool
) -> None:
    async with isolated(clean_servers, redis_url=own_redis.url) as place:
        await place.publish(orders(range(5)))
        await drain(place)
        more = [*orders(range(5)), {"side": "hold"}, *orders(range(5, 8))]
        if from_the_start:
            await place.publish(more)
            await place.redis.config_set("maxmemory", "1")
        async with working(impatient(place)) as events:
            if not from_the_start:
                await place.publish(more[:3])
                await events.wait_for("batch.settled")
                await place.publish(more[3:])
                await place.redis.config_set("maxmemory", "1")
            await until(lambda: outcomes(place, 14), within_s=10)
            await place.redis.config_set("maxmemory", "0")
            await settled(place)
        assert await check(place, claims=False) == Tally(8, 5, 1)


async def outcomes(place: Place, count: int) -> bool:
    return len(await place.fetch("SELECT FROM outcomes")) == count


async def test_a_redis_that_lost_its_data_gets_a_new_group_and_new_orders_flow(
    clean_servers: Servers, own_redis: RedisServer
) -> None:
    async with isolated(clean_servers, redis_url=own_redis.url) as place:
        async with working(place):
            await place.publish(orders(range(10)))
            await settled(place)
            await place.redis.flushall()
            await place.publish(orders(range(5, 15)))
            await until(lambda: outcomes(place, 20))
        rows = await place.fetch("SELECT FROM orders")
        assert len(rows) == 15


async def test_a_replica_is_waited_for_until_it_is_a_primary_again(
    clean_servers: Servers, own_servers: Servers, own_redis: RedisServer
) -> None:
    standby = own_servers.own_redis()
    async with isolated(clean_servers, redis_url=own_redis.url) as place:
        async with (
            connect(standby.url, timeout_ms=5_000) as copy,
            working(impatient(place)) as events,
        ):
            await place.publish(TRAFFIC[:100])
            await settled(place)
            await copy.execute_command("REPLICAOF", "127.0.0.1", own_redis.port)
            await until(lambda: has_copied(copy))
            await copy.execute_command("REPLICAOF", "NO", "ONE")
            await place.command("REPLICAOF", "127.0.0.1", standby.port)
            await events.wait_for("dependency.lost", dependency="redis", state="degraded")
            await place.command("REPLICAOF", "NO", "ONE")
            await place.publish(TRAFFIC[100:])
            await settled(place)
        assert await check(place, in_order=False) == EXPECTED


async def has_copied(replica: Redis) -> bool:
    return (await replica.info("replication"))["master_link_status"] == "up"


async def test_a_redis_that_goes_while_a_batch_waits_for_postgres_is_met_again(
    clean_servers: Servers, own_redis: RedisServer
) -> None:
    """The batch takes longer than the pause after the lost read."""
    async with isolated(clean_servers, redis_url=own_redis.url) as place:
        async with working(place) as events:
            async with place.orders_locked():
                await place.publish(TRAFFIC[:3])  # one batch, so that another read is under way
                await until(lambda: is_pending(place))
                await to_thread.run_sync(own_redis.kill)
                await to_thread.run_sync(own_redis.start)
                await events.wait_for("dependency.lost", dependency="redis")
                await anyio.sleep(0.5)
            await place.publish(TRAFFIC[3:])
            await settled(place)
        assert await check(place, in_order=False) == EXPECTED


async def is_pending(place: Place) -> bool:
    return await place.pending() > 0


async def test_a_worker_waits_for_a_stream_that_is_not_there_yet(place: Place) -> None:
    async with working(place) as events:
        await events.wait_for("group.created")
        await place.publish(TRAFFIC)
        await settled(place)
    assert await check(place) == EXPECTED


# --- claims on a Redis of their own ---


@faults
async def test_orders_flow_by_postgres_alone_while_the_redis_of_the_claims_is_away(
    place: Place, own_redis: RedisServer, down: Step, up: Step
) -> None:
    place = impatient(place).having(DEDUPE_REDIS_URL=own_redis.url, WORKER_BATCH_SIZE="9")
    async with working(place) as events:
        await place.publish(TRAFFIC[:100])
        await settled(place)
        await to_thread.run_sync(down, own_redis)
        await place.publish(TRAFFIC[100:])
        with anyio.fail_after(10):
            await settled(place)
        assert events.of("dependency.lost", dependency="claims")
        assert not events.of("dependency.lost", dependency="redis")
        assert await check(place, claims=False) == EXPECTED
        await to_thread.run_sync(up, own_redis)
        await claims_are_back(place, events)


async def claims_are_back(place: Place, events: Events) -> None:
    """Send new orders until one has its claim."""
    with anyio.fail_after(20):
        for number in count():
            await place.publish([order(number, account="back")])
            await settled(place)
            rows = await place.fetch("SELECT content_hash FROM orders WHERE account = 'back'")
            back = await claims_among(place, [row["content_hash"] for row in rows])
            if back and events.of("dependency.recovered", dependency="claims"):
                return


async def claims_among(place: Place, hashes: list[bytes]) -> int:
    async with connect(place.settings.claims_address, timeout_ms=5_000) as redis:
        return await redis.exists(*(claim_key(place, content_hash) for content_hash in hashes))


async def test_claims_are_on_their_own_redis_and_nowhere_else(
    place: Place, own_redis: RedisServer
) -> None:
    place = place.having(DEDUPE_REDIS_URL=own_redis.url)
    await place.publish(TRAFFIC)
    await drain(place)
    assert await check(place) == EXPECTED
    assert await place.command("KEYS", "idempotency:*") == []
    await points_paid(place)
