"""A place of its own for each test, on servers that it shares with others.

A logical database of Redis, a schema in Postgres, a bucket in InfluxDB and a stream's name: whatever a
test does there, another test, or another run on the same servers, does not see it. Works without pytest:

    with Servers() as servers:
        async with isolated(servers) as place:
            await place.publish([{"order_id": "A-1", …}])
            await serve(place.settings, drain=True)
"""

from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from time import time
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID, uuid1

import anyio
import asyncpg
from anyio import to_thread
from redis.asyncio import Redis

from streams.connection import connect
from streams.producer import Producer, Value
from tests.influxdb_server import InfluxServer
from tests.servers import Servers
from worker.ledger import Ledger
from worker.migrate import migrate
from worker.settings import Settings, load

PREFIX = "test_"
LEFTOVER_S = 3600  #: what is older was left by a run that was killed: no test takes so long
DATABASE_WAIT_S_MAX = 60  #: seconds to wait for a logical database of Redis
REDIS_TIMEOUT_MS = 10_000
LEASES = "ordergate-tests:databases"  #: in database 0, by number: when the lease ends, seconds since 1970

# Lease a database: one that nobody holds and that is empty, or whose lease ended, for then its contents
# are a killed run's. Gives its number, or -1.  KEYS 1 leases  ARGV 1 databases, 2 seconds
LEASE = """
local now = tonumber(redis.call('TIME')[1])
for n = 1, tonumber(ARGV[1]) - 1 do
  local ends = redis.call('HGET', KEYS[1], n)
  redis.call('SELECT', n)
  local free = (ends and tonumber(ends) < now) or (not ends and redis.call('DBSIZE') == 0)
  if free and ends then redis.call('FLUSHDB') end
  redis.call('SELECT', 0)
  if free then
    redis.call('HSET', KEYS[1], n, now + tonumber(ARGV[2]))
    return n
  end
end
return -1
"""


@dataclass(frozen=True)
class Place:
    """What one test has to itself. `redis` and `postgres` are clients for the test's own questions.

    :ivar variables: environment variables that lead a worker here
    """

    variables: Mapping[str, str]
    redis: Redis
    postgres: asyncpg.Pool
    influx: InfluxServer

    @cached_property
    def settings(self) -> Settings:
        """The same as settings, for a worker in this process. Its consumer's name is one per process."""
        return load(self.variables)

    @property
    def stream(self) -> str:
        """The stream that workers read here."""
        return self.settings.streams[0]

    @property
    def bucket(self) -> str:
        """The bucket for points."""
        return self.settings.influxdb_bucket

    def having(self, **variables: str) -> "Place":
        """The same place, for workers with other settings."""
        return replace(self, variables={**self.variables, **variables})

    @property
    def schema(self) -> str:
        """The schema in Postgres."""
        return self.settings.database_schema

    async def publish(
        self, orders: Sequence[Mapping[str, Value]], ids: Sequence[str] | None = None
    ) -> list[str]:
        """Publish orders to the stream; gives the entry ids."""
        return await Producer(self.redis, self.stream).publish(orders, ids=ids)

    async def fetch(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        """The rows of a query; the search path is the place's schema."""
        rows = await cast("Awaitable[list[asyncpg.Record]]", self.postgres.fetch(sql, *arguments))
        return [dict(row) for row in rows]

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[asyncpg.Connection]:
        """One connection to Postgres for several statements."""
        async with cast("Any", self.postgres.acquire()) as connection:
            yield connection

    @asynccontextmanager
    async def orders_locked(self) -> AsyncGenerator[None]:
        """Keep every worker from recording an order while the block runs."""
        async with self.connected() as connection, connection.transaction():
            await connection.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            yield

    async def command(self, *words: str | bytes | int) -> Any:  # noqa: ANN401 - each has its own reply
        """Send one command to Redis; replies of streams come as they are, see `streams.connection`."""
        return await cast("Awaitable[Any]", self.redis.execute_command(*words))

    async def pending(self) -> int:
        """How many entries are read and not acknowledged."""
        return (await self.command("XPENDING", self.stream, self.settings.group))[0]

    async def forget_claims(self) -> None:
        """Remove every claim, as a Redis that lost its data does."""
        keys = await self.command("KEYS", "idempotency:order:*")
        if keys:
            await self.command("DEL", *keys)

    async def points(self) -> list[dict[str, object]]:
        """Every point in the bucket that tells of an entry of the place's streams, by time."""
        ours = " OR ".join(f"stream = '{stream}'" for stream in self.settings.streams)
        every = f"SELECT * FROM orders WHERE entry_id != '' AND ({ours})"
        query = partial(self.influx.query, every, self.bucket)
        return await to_thread.run_sync(query)


@asynccontextmanager
async def isolated(
    servers: Servers,
    *,
    redis_url: str | None = None,
    database_url: str | None = None,
    influx: InfluxServer | None = None,
    **variables: str,
) -> AsyncGenerator[Place]:
    """Make a place, its schema migrated; remove it afterwards. Servers given here go before `servers`'.

    What is given here is the test's own and ends with it: it is not cleaned up, and may be left stopped.

    :param variables: settings of the workers, WORKER_…
    :raises ServerUnavailable: a server can neither be found nor started
    """
    name = f"{PREFIX}{uuid1().hex}"
    database = database_url or servers.database_url
    async with (
        nullcontext(redis_url) if redis_url else leased_database(servers.redis_url) as url,
        _schema(database, name, own=database_url is not None) as postgres,
        _bucket(influx or servers.influx, name) as points,
        connect(url, timeout_ms=REDIS_TIMEOUT_MS) as redis,
    ):
        addresses = {
            "REDIS_URL": url,
            "DATABASE_URL": database,
            "DATABASE_SCHEMA": name,
            "INFLUXDB_URL": points.url,
            "INFLUXDB_TOKEN": points.token,
            "INFLUXDB_ORG": points.org,
            "INFLUXDB_BUCKET": name,
            "WORKER_STREAMS": name.replace(PREFIX, "orders-"),
            "WORKER_LOG_LEVEL": "debug",
            "WORKER_HTTP": "off",
        }
        yield Place({**addresses, **variables}, redis, postgres, points)


@asynccontextmanager
async def leased_database(url: str) -> AsyncGenerator[str]:
    """Take a logical database of a Redis, exclusively; gives its URL. It is empty, and emptied afterwards.

    :raises TimeoutError: all are taken, or hold what is not ours
    """
    async with connect(_database(url, 0), timeout_ms=REDIS_TIMEOUT_MS) as redis:
        with anyio.fail_after(DATABASE_WAIT_S_MAX):
            while (number := await _lease(redis)) < 0:  # noqa: ASYNC110 - it is Redis that knows
                await anyio.sleep(0.2)
    try:
        yield _database(url, number)
    finally:
        with anyio.CancelScope(shield=True):
            await _release(url, number)


async def _lease(redis: Redis) -> int:
    answer = await cast("Awaitable[dict[str, str]]", redis.config_get("databases"))
    words = ("EVAL", LEASE, 1, LEASES, answer["databases"], LEFTOVER_S)
    return await cast("Awaitable[int]", redis.execute_command(*words))


async def _release(url: str, number: int) -> None:
    async with connect(_database(url, number), timeout_ms=REDIS_TIMEOUT_MS) as redis:
        await redis.flushdb()
    async with connect(_database(url, 0), timeout_ms=REDIS_TIMEOUT_MS) as redis:
        await cast("Any", redis.hdel(LEASES, str(number)))


def _database(url: str, number: int) -> str:
    return urlsplit(url)._replace(path=f"/{number}").geturl()


async def _left_as_it_is(_connection: object) -> None:
    """What asyncpg asks Postgres between two uses takes as long as most of our questions."""


@asynccontextmanager
async def _schema(url: str, name: str, *, own: bool) -> AsyncGenerator[asyncpg.Pool]:
    """A migrated schema of that name. On a server of the test's own it is left behind."""
    async with aclosing(Ledger(url, name, timeout_ms=30_000)) as ledger:
        await migrate(ledger, name)
    settings = {"search_path": name, "timezone": "UTC"}
    pool = await asyncpg.create_pool(
        url, min_size=0, max_size=2, server_settings=settings, reset=_left_as_it_is
    )
    try:
        yield pool
    finally:
        with anyio.CancelScope(shield=True):
            if not own:
                await pool.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
        pool.terminate()


@asynccontextmanager
async def _bucket(influx: InfluxServer, name: str) -> AsyncGenerator[InfluxServer]:
    await to_thread.run_sync(influx.create_bucket, name)
    try:
        yield influx
    finally:
        with anyio.CancelScope(shield=True):
            if not influx.is_own:
                await to_thread.run_sync(influx.drop_bucket, name)


async def sweep(servers: Servers) -> None:
    """Remove what killed runs left on servers that outlive them: schemas and buckets, after an hour.

    Databases of Redis need no sweep: their leases end.
    """
    connection = cast("Any", await asyncpg.connect(servers.database_url))
    rows = await connection.fetch("SELECT nspname FROM pg_namespace")
    for name in filter(_is_leftover, (row["nspname"] for row in rows)):
        await connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
    await connection.close()
    if not servers.influx.is_own:
        buckets = servers.influx.query("SHOW DATABASES", "")
        for name in filter(_is_leftover, (str(row["name"]) for row in buckets)):
            servers.influx.drop_bucket(name)


def _is_leftover(name: str) -> bool:
    """Whether the name is of ours, and old: it holds the time at which it was given."""
    try:
        given = UUID(hex=name.removeprefix(PREFIX))
    except ValueError:
        return False
    since_1582_s = given.time / 1e7
    ours = name.startswith(PREFIX) and given.version == 1
    return ours and time() - (since_1582_s - 12_219_292_800) > LEFTOVER_S
