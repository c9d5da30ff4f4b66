"""Servers of a run's own, all of which may be treated badly, and a place on them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.influx_front import InfluxFront
from tests.chaos.journal import WINDOW_MS, Journal, Load
from tests.influxdb_server import InfluxServer
from tests.isolation import Place, isolated
from tests.servers import Servers
from tests.workers import impatient
from worker.embedded import PostgresServer, RedisServer

DISK = "320m"  #: the small file system; a run writes less
REDIS = {"auto-aof-rewrite-percentage": "0", "lua-time-limit": "100"}


@dataclass(slots=True)
class Scene:
    """What faults happen to.

    :ivar elsewhere: a second Redis, with the claims of every other worker
    :ivar disk: the file system of Postgres' tables, if a small one could be had
    :ivar evicted: how many claims were evicted
    """

    redis: RedisServer
    elsewhere: RedisServer
    postgres: PostgresServer
    influx: InfluxServer
    front: InfluxFront
    place: Place
    disk: Path | None
    journal: Journal
    load: Load
    evicted: int = 0

    def place_of(self, number: int) -> Place:
        """Where the worker of that number works: every other one has its claims elsewhere."""
        return self.place.having(DEDUPE_REDIS_URL=self.elsewhere.url) if number % 2 else self.place


@contextmanager
def small_disk() -> Generator[Path | None]:
    """A small file system for tables, where mounting one is allowed. Outlives the server that uses it."""
    with tempfile.TemporaryDirectory(prefix="ordergate-disk-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o755)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0777", "tmpfs", name]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            yield None
            return
        try:
            yield path
        finally:
            subprocess.run(["umount", "--lazy", name], check=False)


@asynccontextmanager
async def scene(
    servers: Servers, disk: Path | None, journal: Journal, load_of: Callable[[Place], Load]
) -> AsyncGenerator[Scene]:
    """Start everything."""
    redis, elsewhere = servers.own_redis(REDIS), servers.own_redis(REDIS)
    postgres, influx = servers.own_postgres(), servers.own_influx()
    async with (
        isolated(servers, redis_url=redis.url, database_url=postgres.url, influx=influx) as bare,
        InfluxFront(influx) as front,
    ):
        place = impatient(bare).having(
            INFLUXDB_URL=front.url,
            WORKER_BATCH_SIZE="50",
            WORKER_DEDUPE_WINDOW=f"{WINDOW_MS}ms",
            WORKER_LOG_LEVEL="info",
            WORKER_LOG_FORMAT="json",
        )
        if disk:
            await _move_tables(place, disk)
        load = load_of(place)
        yield Scene(redis, elsewhere, postgres, influx, front, place, disk, journal, load)


async def _move_tables(place: Place, disk: Path) -> None:
    directory = disk / "tables"
    directory.mkdir()
    if os.geteuid() == 0:
        shutil.chown(directory, "nobody")
    await place.postgres.execute(f"CREATE TABLESPACE small LOCATION '{directory}'")
    for kind in ("TABLE", "INDEX"):
        await place.postgres.execute(
            f"ALTER {kind} ALL IN TABLESPACE pg_default SET TABLESPACE small"
        )
