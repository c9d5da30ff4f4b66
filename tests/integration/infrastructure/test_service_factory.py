"""The tests' own ground: services open whole or not at all, close once, and leave nothing behind."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid1

import anyio
import asyncpg
import pytest
from anyio import to_thread

from streams.connection import connect
from streams.group import Group
from tests.integration.infrastructure.leftovers import Footprint, left_behind
from tests.integration.infrastructure.service_factory import (
    SERVICES,
    RealServiceFactory,
    ServiceUnhealthy,
    ServiceUnknown,
)
from tests.isolation import LEFTOVER_S, Place, isolated, sweep
from tests.markdown import fenced
from tests.orders import order
from tests.servers import Servers
from tests.workers import ROOT, drain, impatient
from worker.batch import Connections
from worker.claims import Claims
from worker.embedded import PostgresServer, RedisServer
from worker.influx import InfluxSink, PointWriter
from worker.intake import Intake
from worker.ledger import Ledger
from worker.settings import Settings

NOWHERE = "127.0.0.1:9"  #: nobody listens there
HERE = Path(__file__).parent


@pytest.fixture
async def factory() -> AsyncGenerator[RealServiceFactory]:
    async with RealServiceFactory() as factory:
        yield factory


# --- opening ---


async def test_the_container_gives_the_products_own_objects(
    factory: RealServiceFactory, clean_database: Place
) -> None:
    services = await factory.initialize_core_services(clean_database)
    kinds = (Ledger, PointWriter, Claims, Connections, Intake, Group)
    assert tuple(type(services.get(name)) for name in SERVICES) == kinds
    assert factory.create_dependency_container().get("Intake") is services.get("Intake")


async def test_the_fixtures_are_connected_to_the_tests_place(
    clean_database: Place,
    real_test_config: Settings,
    real_cache_manager: Claims,
    real_database_service: Ledger,
    verify_services_healthy: None,  # noqa: ARG001 - raises where they are not
) -> None:
    assert await real_cache_manager.claim(["1-1"], [b"\1" * 32])
    [key] = await clean_database.redis.keys("idempotency:order:*")
    assert clean_database.stream in str(key)
    async with real_database_service.connection() as connection:
        assert await connection.fetchval("SELECT current_schema()") == clean_database.schema
    assert real_test_config.influxdb_bucket == clean_database.schema


async def test_an_unknown_name_is_answered_with_the_known_ones(
    factory: RealServiceFactory, clean_database: Place
) -> None:
    services = await factory.initialize_core_services(clean_database)
    with pytest.raises(ServiceUnknown, match=r"'Database'; known are .*DatabaseService.*Cache"):
        services.get("Database")


async def test_before_and_after_its_time_a_service_is_told_to_be_closed(
    factory: RealServiceFactory, clean_database: Place
) -> None:
    services = factory.create_dependency_container()
    with pytest.raises(ServiceUnknown, match="CacheManager is closed, or was never opened"):
        services.get("CacheManager")
    await factory.initialize_core_services(clean_database)
    assert services.get("CacheManager")
    with pytest.raises(RuntimeError, match="open already"):
        await factory.initialize_core_services(clean_database)
    await factory.cleanup()
    with pytest.raises(ServiceUnknown, match="CacheManager is closed"):
        services.get("CacheManager")


UNHEALTHY = {
    "Postgres": {"DATABASE_URL": f"postgresql://tbot@{NOWHERE}/tbot_dev"},
    "Postgres ": {"DATABASE_SCHEMA": "test_that_is_not_there"},
    "InfluxDB": {"INFLUXDB_URL": f"http://{NOWHERE}"},
    "InfluxDB ": {"INFLUXDB_TOKEN": "wrong"},
    "the Redis of the claims": {"DEDUPE_REDIS_URL": f"redis://{NOWHERE}"},
    "Redis": {"REDIS_URL": f"redis://{NOWHERE}"},
}


@pytest.mark.parametrize(("server", "variables"), UNHEALTHY.items())
async def test_a_start_that_fails_half_way_names_the_server_and_closes_what_was_open(
    factory: RealServiceFactory, clean_database: Place, server: str, variables: dict[str, str]
) -> None:
    before = Footprint.now()
    with pytest.raises(ServiceUnhealthy, match=f"^{server.strip()} is not healthy: "):
        await factory.initialize_core_services(claims_apart(clean_database).having(**variables))
    await connections_are(before)
    services = await factory.initialize_core_services(clean_database)
    assert services.get("Connections").servers.redis.up


def claims_apart(place: Place) -> Place:
    """The claims keep their Redis where the streams' is another."""
    return place.having(DEDUPE_REDIS_URL=place.settings.redis_address)


async def connections_are(expected: Footprint) -> None:
    """Wait until this process has the connections it had, and no other."""
    with anyio.fail_after(2):
        while Footprint.now().connections != expected.connections:  # noqa: ASYNC110
            await anyio.sleep(0.01)


# --- closing ---

CLOSERS = [(Group, "group"), (Claims, "claims"), (InfluxSink, "points"), (Ledger, "ledger")]


def note_closing(
    monkeypatch: pytest.MonkeyPatch, kind: type[object], note: Callable[[], None]
) -> None:
    """Let something happen whenever an object of that kind has closed."""
    close: Callable[[object], Awaitable[None]] = vars(kind)["aclose"]

    async def closing(it: object) -> None:
        await close(it)
        note()

    monkeypatch.setattr(kind, "aclose", closing)


async def test_cleaning_up_closes_each_service_once_the_last_opened_first(
    factory: RealServiceFactory, clean_database: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for kind, name in CLOSERS:
        note_closing(monkeypatch, kind, lambda name=name: closed.append(name))
    before = Footprint.now()
    await factory.initialize_core_services(clean_database)
    assert Footprint.now() != before
    await factory.cleanup()
    await factory.cleanup()
    assert closed == [name for _, name in CLOSERS]
    await connections_are(before)


async def test_a_service_that_fails_to_close_does_not_keep_the_others_open(
    factory: RealServiceFactory, clean_database: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("broken")

    note_closing(monkeypatch, Claims, fail)
    before = Footprint.now()
    await factory.initialize_core_services(clean_database)
    with pytest.raises(OSError, match="broken"):
        await factory.cleanup()
    await connections_are(before)


async def test_cleaning_up_keeps_its_bound_where_servers_hang_in_the_middle_of_a_call(
    clean_servers: Servers, own_redis: RedisServer, own_postgres: PostgresServer
) -> None:
    async with isolated(
        clean_servers, redis_url=own_redis.url, database_url=own_postgres.url
    ) as place:
        factory = RealServiceFactory()
        services = await factory.initialize_core_services(impatient(place))
        await place.publish([order(n) for n in range(9)])
        async with anyio.create_task_group() as tasks:
            await to_thread.run_sync(own_postgres.pause)
            tasks.start_soon(services.get("Intake").run)
            while services.get("Connections").servers.postgres.up:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await to_thread.run_sync(own_redis.pause)
            tasks.cancel_scope.cancel()
        await factory.cleanup()  # raises where it takes longer
        own_redis.resume()
        own_postgres.resume()


# --- nothing left behind ---


async def test_what_is_left_behind_is_found(clean_servers: Servers) -> None:
    before = Footprint.now()
    async with (
        isolated(clean_servers) as place,
        connect(place.settings.redis_address, timeout_ms=5_000) as redis,
    ):
        await redis.ping()
        await place.publish([order(1)])
        found = " ".join(await left_behind(place, clean_servers, before))
    assert f"schema {place.schema}" in found
    assert f"key {place.stream}" in found
    assert "a connection to port" in found
    assert place.influx.is_own or f"bucket {place.bucket}" in found
    assert await left_behind(place, clean_servers, before) == []


async def test_two_places_do_not_see_each_other(clean_servers: Servers) -> None:
    async with isolated(clean_servers) as one, isolated(clean_servers) as other:
        assert re.fullmatch("test_[0-9a-f]{32}", one.schema)
        await one.publish([order(1), order(1)])
        await drain(one)
        await other.publish([order(1)])
        await drain(other)
        for place, outcomes in ((one, 2), (other, 1)):
            assert len(await place.fetch("SELECT FROM outcomes")) == outcomes
            assert len(await place.points()) == outcomes
            assert len(await place.redis.keys("idempotency:*")) == 1


async def test_schemas_left_by_killed_runs_are_swept_by_runs_at_once_and_others_are_not(
    clean_servers: Servers,
) -> None:
    old = [f"test_{made(LEFTOVER_S + 60).hex}" for _ in range(5)]
    spared = [f"test_{made(LEFTOVER_S - 60).hex}", f"mine_{made(LEFTOVER_S + 60).hex}"]
    async with postgres(clean_servers) as connection:
        for name in (*old, *spared):
            await connection.execute(f"CREATE SCHEMA {name} CREATE TABLE orders (id int)")
        try:
            async with anyio.create_task_group() as runs:
                for _ in range(3):
                    runs.start_soon(sweep, clean_servers)
            rows = await connection.fetch("SELECT nspname FROM pg_namespace")
        finally:
            for name in (*old, *spared):
                await connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
    assert {row["nspname"] for row in rows} & {*old, *spared} == set(spared)


@asynccontextmanager
async def postgres(servers: Servers) -> AsyncGenerator[Any]:
    """A connection to the session's Postgres, outside of any place."""
    connection = cast("Any", await asyncpg.connect(servers.database_url))
    try:
        yield connection
    finally:
        await connection.close()


def made(seconds_ago: int) -> UUID:
    """The name of a place made so long ago."""
    now = uuid1()
    time = now.time - seconds_ago * 10_000_000
    fields = (time & 0xFFFFFFFF, time >> 32 & 0xFFFF, time >> 48 | 0x1000)
    return UUID(fields=(*fields, now.clock_seq_hi_variant, now.clock_seq_low, now.node))


FAILING = """
from tests.integration.infrastructure.service_factory import ProductionReadyTestBase

class TestThatFails(ProductionReadyTestBase):
    async def test_it(self):
        print("its schema is", self.place.schema)
        await self.services.get("PointWriter").drain()
        raise ValueError("as it should")
"""


async def test_a_failing_test_shows_the_logs_of_its_servers_and_leaves_nothing_behind(
    clean_servers: Servers, tmp_path: Path
) -> None:
    test = tmp_path / "test_failing.py"
    test.write_text(FAILING)
    plugins = ["tests.conftest", "tests.integration.infrastructure.conftest"]
    (tmp_path / "conftest.py").write_text(f"pytest_plugins = {plugins}")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-c", "pyproject.toml", f"--rootdir={ROOT}", str(test)]
    given = {
        **os.environ,
        "REDIS_URL": clean_servers.redis_url,
        "DATABASE_URL": clean_servers.database_url,
        "INFLUXDB_URL": "",
        "INFLUXDB_HOST": "",
    }
    ended = await anyio.run_process(
        command, cwd=ROOT, env=given, check=False, stderr=subprocess.STDOUT
    )
    said = ended.stdout.decode()
    assert ended.returncode == 1, said
    assert "ValueError: as it should" in said
    assert "left behind" not in said
    assert re.search(r"- log of InfluxDB -.*\n.*influxdb", said, re.IGNORECASE), said
    schema = re.search(r"its schema is (test_\w+)", said)
    assert schema
    async with postgres(clean_servers) as connection:
        assert await connection.fetchval("SELECT to_regnamespace($1)", schema[1]) is None


# --- the README ---


def test_the_example_in_the_readme_is_the_one_that_runs() -> None:
    [example] = fenced((HERE / "README.md").read_text(), "python")
    assert example == (HERE / "test_example.py").read_text()


def test_the_readme_names_every_service_and_fixture() -> None:
    readme = (HERE / "README.md").read_text()
    fixtures = re.findall(
        r"@pytest.fixture\n(?:async )?def (\w+)", (HERE / "conftest.py").read_text()
    )
    assert [name for name in (*SERVICES, *fixtures) if f"`{name}`" not in readme] == []
