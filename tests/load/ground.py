"""The ground of every measurement: servers of its own, what is published there, and what they cost.

One Redis and one Postgres serve a whole run, durable as the product's own: appendonly everysec,
synchronous_commit on. `clean` gives each measurement the same start: nothing in Redis, no table, a
checkpoint just done. Fresh servers instead would measure how a young Postgres makes its first WAL files.
"""

import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import anyio
import asyncpg
from redis.asyncio import Redis

from streams.connection import call, connect
from streams.producer import Producer
from tests.influxdb_server import InfluxServer
from worker.embedded import PostgresServer, RedisServer

STREAM, GROUP, BUCKET = "orders", "order-workers", "bench"
CHUNK = 10_000  #: orders made and published at once
TICKS_S = os.sysconf("SC_CLK_TCK")
#: Some gigabytes at once keep the disk busy, and Redis with it: it waits for its log.
PUBLISHING_MS_MAX = 120_000
POSTGRES = ("postgres",)
REDIS = ("redis-server", "valkey-server")
#: Rewriting the log of an earlier measurement must not fall into this one.
REDIS_OPTIONS = {"auto-aof-rewrite-percentage": "0"}


class Used(NamedTuple):
    """Seconds of CPU that each server has used since it started, its dead children included."""

    redis_s: float
    postgres_s: float


@dataclass(frozen=True)
class Ground:
    """Servers of our own, and how to ask them."""

    redis_url: str
    database_url: str
    points: Path
    redis: Redis
    postgres: asyncpg.Connection
    influx: InfluxServer | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What leads a program here, its points to a file."""
        return {
            "PATH": os.environ["PATH"],
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": self.database_url,
            "INFLUXDB_URL": self.points.as_uri(),
            "WORKER_LOG_LEVEL": "warning",
        }

    @property
    def influx_variables(self) -> dict[str, str]:
        """What leads points to InfluxDB instead; nothing where none was asked for."""
        if not self.influx:
            return {}
        return {
            "INFLUXDB_URL": self.influx.url,
            "INFLUXDB_TOKEN": self.influx.token,
            "INFLUXDB_ORG": self.influx.org,
            "INFLUXDB_BUCKET": BUCKET,
        }

    async def clean(self) -> None:
        """Remove what was there, and let both servers finish writing it."""
        await self.command("FLUSHALL", "ASYNC")  # ten million keys take longer than a call may
        await self.command("BGREWRITEAOF")
        while await self._rewrites():  # noqa: ASYNC110 - Redis sends no event
            await anyio.sleep(0.05)
        await self.execute("DROP SCHEMA public CASCADE")
        await self.execute("CREATE SCHEMA public")
        await self.execute("CHECKPOINT")
        self.points.unlink(missing_ok=True)

    async def _rewrites(self) -> bool:
        info = await self.command("INFO", "persistence")
        return info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]

    async def migrate(self) -> None:
        """Make Ordergate's schema."""
        command = [sys.executable, "-m", "worker", "migrate"]
        await anyio.run_process(command, env=self.variables)

    async def publish(self, orders: Iterable[dict[str, str]]) -> None:
        """Put orders into the stream, and a group before the first of them."""
        producer, rest = Producer(self.redis, STREAM), iter(orders)
        while chunk := list(islice(rest, CHUNK)):
            await producer.publish(chunk)
        await self.command("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")

    async def command(self, *words: str | int) -> Any:  # noqa: ANN401 - each has its own reply
        """Ask Redis."""
        return await call(self.redis, *words)

    async def execute(self, sql: str, *arguments: object) -> None:
        """Tell Postgres."""
        await cast("Any", self.postgres.execute(sql, *arguments))

    async def row(self, sql: str, *arguments: object) -> tuple[Any, ...]:
        """The only row of a query."""
        return tuple(await cast("Any", self.postgres.fetchrow(sql, *arguments)))

    def used(self) -> Used:
        """What the servers have used so far."""
        return Used(_cpu_s(REDIS), _cpu_s(POSTGRES))


@asynccontextmanager
async def ground(*, influx: bool = False) -> AsyncGenerator[Ground]:
    """Start servers, and stop them on leaving.

    :param influx: start an InfluxDB too
    :raises EmbeddedUnavailable, InfluxUnavailable: a server can neither be found nor started
    """
    with _servers() as (redis_url, database_url, directory), ExitStack() as stack:
        influxdb = stack.enter_context(_influxdb()) if influx else None
        redis = connect(redis_url, timeout_ms=PUBLISHING_MS_MAX)
        connecting = cast("Any", asyncpg.connect(database_url, server_settings={"timezone": "UTC"}))
        postgres = cast("asyncpg.Connection", await connecting)
        try:
            yield Ground(
                redis_url, database_url, directory / "points.lp", redis, postgres, influxdb
            )
        finally:
            await redis.aclose()
            postgres.terminate()


@contextmanager
def _servers() -> Generator[tuple[str, str, Path]]:
    with tempfile.TemporaryDirectory(prefix="ordergate-bench-") as name:
        directory = Path(name).resolve()
        redis = RedisServer(directory / "redis", options=REDIS_OPTIONS)
        with redis, PostgresServer(directory / "postgres") as postgres:
            yield redis.url, postgres.url, directory


@contextmanager
def _influxdb() -> Generator[InfluxServer]:
    server = InfluxServer({})
    server.start()
    try:
        server.create_bucket(BUCKET)
        yield server
    finally:
        server.close()


def _cpu_s(names: tuple[str, ...]) -> float:
    """CPU of all our descendants of these names, and of their children that have ended."""
    return sum(process.cpu_s for process in _descendants(os.getpid()) if process.name in names)


class Process(NamedTuple):
    """One process, as /proc tells of it."""

    pid: int
    parent: int
    name: str
    own_s: float
    cpu_s: float  #: with that of its children that have ended


def process_of(pid: int) -> Process | None:
    """The process of that number; None once it has ended.

    Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    words = rest.split()
    times_s = [int(word) / TICKS_S for word in words[11:15]]
    return Process(pid, int(words[1]), name, sum(times_s[:2]), sum(times_s))


def _descendants(ancestor: int) -> Iterator[Process]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    found = {process.pid: process for pid in pids if (process := process_of(pid))}
    for process in found.values():
        above = process
        while above.parent in found and above.parent != ancestor:
            above = found[above.parent]
        if above.parent == ancestor:
            yield process


def peak_mib(pid: int) -> float:
    """The most memory that a process has had resident so far; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(sizes[0]) / 1024 if sizes else 0
