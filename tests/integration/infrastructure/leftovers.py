"""What a test may leave behind on servers that it shares: looked for when all it had is given back."""

import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import asyncpg
from anyio import to_thread

from streams.connection import connect
from tests.isolation import REDIS_TIMEOUT_MS, Place
from tests.servers import Servers

CLOSING_S_MAX = 0.5  #: seconds; a connection that is closed is gone after a turn of the event loop


@dataclass(frozen=True)
class Footprint:
    """What this process holds: how many tasks, and how many connections to which port."""

    tasks: int
    connections: Counter[int]

    @classmethod
    def now(cls) -> "Footprint":
        """What it holds now."""
        ports = [_peer_port(int(path.name)) for path in Path("/dev/fd").iterdir()]
        return cls(len(anyio.get_running_tasks()), Counter(port for port in ports if port))


async def left_behind(place: Place, servers: Servers, before: Footprint) -> list[str]:
    """What is left of a place that was given back; nothing, it is hoped.

    :param before: what this process held before the place was made
    """
    return [
        *await _held(place, before),
        *await _in_postgres(place, servers),
        *await _in_redis(place),
        *await _in_influxdb(place),
    ]


async def _held(place: Place, before: Footprint) -> list[str]:
    """Tasks and connections. One to InfluxDB is the tests' own HTTP client's, which keeps it."""
    settings = place.settings
    allowed = Counter({_port(place.influx.url): 1})
    ports = {_port(settings.redis_address), _port(settings.database_address), *allowed}
    with anyio.move_on_after(CLOSING_S_MAX):
        while _more(before, ports, allowed):  # noqa: ASYNC110 - nothing tells of a socket's end
            await anyio.sleep(0.005)
    tasks = Footprint.now().tasks - before.tasks
    return [
        *([f"{tasks} running tasks"] if tasks > 0 else []),
        *(f"a connection to port {port}" for port in _more(before, ports, allowed)),
    ]


def _more(before: Footprint, ports: set[int], allowed: Counter[int]) -> list[int]:
    now = Footprint.now().connections
    return [port for port in ports if now[port] > max(before.connections[port], allowed[port])]


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port, f"{url} names no port"
    return port


def _peer_port(number: int) -> int | None:
    """The port that a file descriptor is connected to; None where it is no connection."""
    try:
        found = socket.socket(fileno=number)
    except OSError:
        return None
    try:
        return found.getpeername()[1] if found.family != socket.AF_UNIX else None
    except OSError:  # it listens
        return None
    finally:
        found.detach()  # it is not ours to close


async def _in_postgres(place: Place, servers: Servers) -> list[str]:
    connection = cast("Any", await asyncpg.connect(servers.database_url))
    try:
        there = await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", place.schema)
    finally:
        await connection.close()
    return [f"schema {place.schema}"] if there else []


async def _in_redis(place: Place) -> list[str]:
    """Every key of a test names its stream; the database may be another test's by now."""
    async with connect(place.settings.redis_address, timeout_ms=REDIS_TIMEOUT_MS) as redis:
        keys = cast("AsyncIterator[str]", redis.scan_iter(f"*{place.stream}*", count=1000))
        return [f"key {key}" async for key in keys]


async def _in_influxdb(place: Place) -> list[str]:
    """A server of the session's own goes with the session, buckets and all."""
    if place.influx.is_own:
        return []
    rows = await to_thread.run_sync(place.influx.query, "SHOW DATABASES", "")
    return [f"bucket {place.bucket}"] if place.bucket in {row["name"] for row in rows} else []
