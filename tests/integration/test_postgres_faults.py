"""Postgres away: nothing is acknowledged before it is committed, and the worker goes on by itself."""

import signal
from collections.abc import Callable
from typing import Any, cast

import anyio
import asyncpg
import pytest
from anyio import to_thread

from scripts.replay.synthetic import synthetic_orders
from tests.isolation import Place, isolated
from tests.orders import orders
from tests.record import Tally, check, settled, until
from tests.servers import Servers
from tests.workers import Workers, drain, impatient, working
from worker import influx
from worker.embedded import PostgresServer

pytestmark = pytest.mark.anyio

TRAFFIC = list(synthetic_orders(200, 60, seed=9))
EXPECTED = Tally(200, 60)
Step = Callable[[PostgresServer], None]

FAULTS = {
    "stopped": (PostgresServer.stop, PostgresServer.start),
    "killed": (PostgresServer.kill, PostgresServer.start),
    "hung": (PostgresServer.pause, PostgresServer.resume),
}
faults = pytest.mark.parametrize(("down", "up"), FAULTS.values(), ids=FAULTS)


@faults
async def test_nothing_is_lost_or_doubled_while_postgres_is_away(
    clean_servers: Servers, own_postgres: PostgresServer, down: Step, up: Step
) -> None:
    async with isolated(
        clean_servers, database_url=own_postgres.url, WORKER_BATCH_SIZE="9"
    ) as place:
        await place.publish(TRAFFIC[:150])
        async with working(impatient(place)) as events:
            await until(lambda: place.fetch("SELECT FROM outcomes"))
            await to_thread.run_sync(down, own_postgres)
            await place.publish(TRAFFIC[150:])
            await events.wait_for("dependency.lost", dependency="postgres")
            await to_thread.run_sync(up, own_postgres)
            await settled(place)
        assert await check(place, in_order=False) == EXPECTED


@faults
async def test_nothing_is_acknowledged_while_postgres_is_away(
    clean_servers: Servers, own_postgres: PostgresServer, down: Step, up: Step
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        async with working(impatient(place)) as events:
            await place.publish(orders(range(3)))
            await settled(place)
            await to_thread.run_sync(down, own_postgres)
            await place.publish(orders(range(3, 10)))
            await events.wait_for("dependency.lost", dependency="postgres")
            await until(lambda: pending(place, 7))
            await to_thread.run_sync(up, own_postgres)
            await settled(place)
        assert await check(place, in_order=False) == Tally(10)


async def pending(place: Place, count: int) -> bool:
    return await place.pending() == count


@faults
async def test_a_worker_killed_while_postgres_is_away_leaves_all_to_the_next(
    clean_servers: Servers, own_postgres: PostgresServer, workers: Workers, down: Step, up: Step
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        same = impatient(place).having(WORKER_CONSUMER="same", WORKER_BATCH_SIZE="9")
        worker = await workers.start(same)
        await worker.logged("worker.ready")
        await place.publish(TRAFFIC)
        await until(lambda: place.fetch("SELECT FROM outcomes"))
        await to_thread.run_sync(down, own_postgres)
        await worker.logged("dependency.lost")
        worker.signal(signal.SIGKILL)
        await worker.ended()
        await to_thread.run_sync(up, own_postgres)
        await drain(same)
        assert await check(place, in_order=False) == EXPECTED


async def test_a_postgres_that_is_away_at_the_start_is_waited_for(
    clean_servers: Servers, own_postgres: PostgresServer
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        await place.publish(TRAFFIC)
        await to_thread.run_sync(own_postgres.stop)
        async with working(place) as events:
            await events.wait_for("dependency.lost", dependency="postgres")
            await to_thread.run_sync(own_postgres.start)
            await settled(place)
        assert await check(place) == EXPECTED


@pytest.mark.parametrize("scope", ["SYSTEM", "DATABASE tbot_dev"])
async def test_a_read_only_postgres_is_waited_for_until_it_takes_writes(
    clean_servers: Servers, own_postgres: PostgresServer, scope: str
) -> None:
    """What a worker meets after a failover: the server that it is connected to is a replica now."""
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        async with working(place) as events:
            await place.publish(TRAFFIC[:100])
            await settled(place)
            await alter(place, f"ALTER {scope} SET default_transaction_read_only = on")
            await place.publish(TRAFFIC[100:])
            await events.wait_for("dependency.lost", dependency="postgres", state="degraded")
            await alter(place, f"ALTER {scope} RESET default_transaction_read_only")
            await settled(place)
        assert await check(place, in_order=False) == EXPECTED


#: What a database's owner may have set for other users of it, and what ours must not depend on.
ELSEWHERE = {
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kolkata",
    "array_nulls": "off",
    "bytea_output": "escape",
    "check_function_bodies": "off",
    "client_encoding": "LATIN1",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "enable_indexscan": "off",
    "extra_float_digits": "-15",
    "plan_cache_mode": "force_generic_plan",
    "plpgsql.extra_errors": "all",
    "plpgsql.variable_conflict": "use_variable",
    "quote_all_identifiers": "on",
    "search_path": "pg_catalog",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
}


async def test_a_database_with_settings_of_its_own_changes_nothing(
    clean_servers: Servers, own_postgres: PostgresServer
) -> None:
    connection = cast("Any", await asyncpg.connect(own_postgres.url))
    name = await connection.fetchval("SELECT current_database()")
    for setting, value in ELSEWHERE.items():
        await connection.execute(f"ALTER DATABASE {name} SET {setting} TO {value!r}")
    await connection.close()
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        await place.publish(TRAFFIC)
        await drain(place)
        assert await check(place) == EXPECTED


#: One that is cut within a statement is told of otherwise: that is not what is asked here.
END_IDLE = """
SELECT CASE WHEN state = 'idle' THEN pg_terminate_backend(pid) END
FROM pg_stat_activity WHERE application_name = 'ordergate' AND backend_start < $1
"""


async def alter(place: Place, statement: str) -> None:
    """Change the server and end every other session, for a database's setting is read at its start."""
    async with place.connected() as connection:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(statement)
        await connection.execute("SELECT pg_reload_conf()")
        changed_at: object = await cast("Any", connection).fetchval("SELECT clock_timestamp()")
        with anyio.fail_after(30):
            while await connection.fetch(END_IDLE, changed_at):  # noqa: ASYNC110 - it sends no events
                await anyio.sleep(0.01)


async def test_connections_that_are_cut_again_and_again_lose_nothing(place: Place) -> None:
    place = place.having(WORKER_BATCH_SIZE="3")
    await place.publish(TRAFFIC)
    async with working(place):
        for _ in range(20):
            await place.postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'ordergate' AND query LIKE '%record_outcomes%'"
            )
            await anyio.sleep(0.01)
        await settled(place)
    assert await check(place) == EXPECTED


async def test_a_locked_table_is_waited_for_within_the_bound_and_nothing_doubles(
    place: Place,
) -> None:
    async with working(impatient(place)) as events:
        async with place.orders_locked():
            await place.publish(TRAFFIC)
            await events.wait_for("dependency.lost", dependency="postgres")
        await settled(place)
    assert await check(place, in_order=False) == EXPECTED


async def test_a_full_disk_is_one_outage_though_the_backlog_of_points_is_still_looked_at(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influx, "LOOK_S", 0.1)
    async with working(place) as events:
        await place.postgres.execute(DISK_IS_FULL)
        await place.publish(orders(range(3)))
        await events.wait_for("dependency.lost", dependency="postgres", state="degraded")
        await anyio.sleep(1.5)  # that nothing happens cannot be waited for
        assert not events.of("dependency.recovered", dependency="postgres")
        await place.postgres.execute("DROP TRIGGER full_disk ON orders")
        await settled(place)
        assert len(events.of("dependency.recovered", dependency="postgres")) == 1


DISK_IS_FULL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'could not extend file: No space left on device';
END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON orders EXECUTE FUNCTION full_disk();
"""


async def test_what_a_trigger_of_the_operators_raises_is_said_in_a_line_and_costs_no_order(
    place: Place, workers: Workers
) -> None:
    place = place.having(WORKER_CONSUMER="same")
    await place.postgres.execute(RAISES)
    await place.publish(orders(range(3)))
    worker = await workers.start(place, "--drain")
    assert await worker.ended() == 1
    assert "ordergate: Postgres refuses: closed for today" in worker.log
    assert "Traceback" not in worker.log
    await place.postgres.execute("DROP TRIGGER closed ON orders")
    await drain(place)
    assert await check(place) == Tally(3)


RAISES = """
CREATE FUNCTION closed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'closed for today'; END $$;
CREATE TRIGGER closed AFTER INSERT ON orders EXECUTE FUNCTION closed();
"""
