"""Signals: what is held is finished within a bound, and what is not stays for the next worker."""

import signal

import anyio
import pytest
from anyio import to_thread

from scripts.replay.synthetic import synthetic_orders
from tests.isolation import Place, isolated
from tests.orders import orders
from tests.record import Tally, check, everything, settled, until
from tests.servers import Servers
from tests.workers import WorkerProcess, Workers, drain, impatient
from worker.embedded import PostgresServer

pytestmark = pytest.mark.anyio

LOAD = list(synthetic_orders(6000, 1500, seed=17))


async def ready(worker: WorkerProcess) -> WorkerProcess:
    await worker.logged("worker.ready")
    return worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_worker_ends_at_once(
    place: Place, workers: Workers, number: signal.Signals
) -> None:
    await place.publish(orders(range(5)))
    worker = await ready(await workers.start(place))
    await settled(place)
    worker.signal(number)
    assert await worker.ended(within_s=3) == 0
    assert "worker.stopped" in worker.log
    assert await check(place) == Tally(5)


@pytest.mark.long
async def test_a_stopped_worker_has_finished_all_that_it_read(
    place: Place, workers: Workers
) -> None:
    place = place.having(WORKER_BATCH_SIZE="50")
    await place.publish(LOAD)
    worker = await ready(await workers.start(place))
    await until(lambda: place.fetch("SELECT FROM outcomes LIMIT 1"))
    worker.signal(signal.SIGTERM)
    assert await worker.ended(within_s=12) == 0
    assert await place.pending() == 0
    assert 0 < len(await place.fetch("SELECT FROM outcomes")) < len(LOAD)
    await drain(place)
    assert await check(place) == Tally(6000, 1500)


async def test_a_stopped_worker_leaves_the_group(place: Place, workers: Workers) -> None:
    await place.publish(orders(range(5)))
    worker = await ready(await workers.start(place))
    await settled(place)
    worker.signal(signal.SIGTERM)
    await worker.ended()
    consumers = await place.command("XINFO", "CONSUMERS", place.stream, place.settings.group)
    assert consumers == []


async def test_stopping_is_bounded_where_postgres_hangs_and_nothing_is_lost(
    clean_servers: Servers, own_postgres: PostgresServer, workers: Workers
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        patience = {"WORKER_SHUTDOWN_TIMEOUT": "500ms"}
        worker = await held_by_postgres(place.having(**patience), own_postgres, workers)
        worker.signal(signal.SIGTERM)
        assert await worker.ended(within_s=6) == 0
        await to_thread.run_sync(own_postgres.resume)
        await drain(impatient(place))
        assert await check(place) == Tally(8)


async def test_a_second_signal_ends_a_worker_at_once(
    clean_servers: Servers, own_postgres: PostgresServer, workers: Workers
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        patience = {"WORKER_SHUTDOWN_TIMEOUT": "10m"}
        worker = await held_by_postgres(place.having(**patience), own_postgres, workers)
        worker.signal(signal.SIGTERM)
        await worker.logged("worker.stopping")
        assert worker.running
        worker.signal(signal.SIGTERM)
        assert await worker.ended(within_s=6) == 0
        await to_thread.run_sync(own_postgres.resume)
        await drain(impatient(place))
        assert await check(place) == Tally(8)


async def held_by_postgres(
    place: Place, postgres: PostgresServer, workers: Workers
) -> WorkerProcess:
    """A worker that has read orders and waits for Postgres, which hangs."""
    await place.publish(orders(range(5)))
    worker = await ready(await workers.start(impatient(place)))
    await settled(place)
    await to_thread.run_sync(postgres.pause)
    await place.publish(orders(range(5, 8)))
    await worker.logged("dependency.lost")
    return worker


async def test_a_worker_that_waits_for_postgres_at_its_start_obeys_a_signal(
    clean_servers: Servers, own_postgres: PostgresServer, workers: Workers
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        await to_thread.run_sync(own_postgres.stop)
        worker = await workers.start(place)
        await worker.logged("dependency.lost")
        worker.signal(signal.SIGTERM)
        assert await worker.ended(within_s=6) == 0


@pytest.mark.long
async def test_workers_killed_again_and_again_under_load_leave_exact_outcomes(
    place: Place, workers: Workers
) -> None:
    place = impatient(place).having(WORKER_BATCH_SIZE="40")
    async with anyio.create_task_group() as producers:
        for part in range(3):
            producers.start_soon(place.publish, LOAD[part::3])
    for kills in range(3):
        pair = [await workers.start(place, WORKER_CONSUMER=f"{kills}-{n}") for n in range(2)]
        await until(lambda more=(kills + 1) * 600: recorded(place, more))
        for worker in pair:
            worker.signal(signal.SIGKILL)
            await worker.ended()
    last = [await workers.start(place, "--drain") for _ in range(2)]
    assert [await worker.ended() for worker in last] == [0, 0]
    assert await check(place, in_order=False) == Tally(6000, 1500)
    before = await everything(place)
    await place.redis.xgroup_setid(place.stream, place.settings.group, "0")
    await drain(place.having(WORKER_BATCH_SIZE="1000"))
    assert await everything(place) == before


async def recorded(place: Place, count: int) -> bool:
    return len(await place.fetch("SELECT FROM outcomes")) >= count
