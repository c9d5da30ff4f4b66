"""What may happen to a Redis: away, slow, out of something, without its memory."""

import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import anyio
from anyio import to_thread
from redis.asyncio import Redis

from streams.connection import connect
from tests.chaos.scene import Scene
from tests.chaos.watcher import NOT_ON_RECORD
from tests.record import AWAY, until
from worker.embedded import RedisServer

Fault = Callable[[Scene, RedisServer, Random], Awaitable[None]]

BUSY = "for _ = 1, tonumber(ARGV[1]) do end"  # a script is given no clock in every version
TURNS = 10**8  #: of that loop; about a second
IDS = """
local ids = {}
for i, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do ids[i] = entry[1] end
return ids
"""


async def killed(_scene: Scene, redis: RedisServer, _chance: Random) -> None:
    """SIGKILL, and started again: it loses nothing that it has answered."""
    await to_thread.run_sync(redis.kill)
    await to_thread.run_sync(redis.start)


async def stopped(_scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Stopped for a while."""
    await to_thread.run_sync(redis.stop)
    await anyio.sleep(chance.uniform(0.2, 3))
    await to_thread.run_sync(redis.start)


async def hung(_scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Accepts connections and answers nothing, then goes on with what it was sent meanwhile."""
    redis.pause()
    await anyio.sleep(chance.uniform(0.2, 4))
    redis.resume()


async def slow(_scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Every answer takes long, some longer than workers wait."""
    async with admin(redis) as client:
        for _ in range(10):
            await ask(client, "EVAL", BUSY, 0, round(chance.uniform(0.02, 0.09) * TURNS))
            await anyio.sleep(0.01)


async def busy(_scene: Scene, redis: RedisServer, chance: Random) -> None:
    """A script runs for longer than its limit: everyone else is told BUSY."""
    async with admin(redis) as client:
        await ask(client, "EVAL", BUSY, 0, round(chance.uniform(0.5, 2) * TURNS))


async def cut(_scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Closes every connection, several times."""
    async with admin(redis) as client:
        for _ in range(5):
            await ask(client, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await anyio.sleep(chance.uniform(0.05, 0.3))


async def crowded(_scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Takes no more clients."""
    async with admin(redis) as client:
        await ask(client, "CONFIG", "SET", "maxclients", "1")
        await ask(client, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await anyio.sleep(chance.uniform(0.5, 2))
        await ask(client, "CONFIG", "SET", "maxclients", "10000")


async def replica(_scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Became a replica, and answers writes with READONLY; then it is the primary again."""
    async with admin(redis) as client:
        await ask(client, "REPLICAOF", "127.0.0.1", "1")
        await anyio.sleep(chance.uniform(0.5, 3))
        await ask(client, "REPLICAOF", "NO", "ONE")


async def full(_scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Out of memory: whatever would store something is answered with OOM."""
    async with admin(redis) as client:
        await ask(client, "CONFIG", "SET", "maxmemory", "1")
        await anyio.sleep(chance.uniform(0.5, 3))
        await ask(client, "CONFIG", "SET", "maxmemory", "0")


async def evicting(scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Drops claims to make room, as a Redis with an eviction policy does."""
    async with admin(redis) as client:
        await ask(client, "CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        await ask(client, "CONFIG", "SET", "maxmemory", "1000000")
        await anyio.sleep(chance.uniform(0.5, 3))
        await ask(client, "CONFIG", "SET", "maxmemory", "0")
        await ask(client, "CONFIG", "SET", "maxmemory-policy", "noeviction")
        scene.evicted += (await client.info("stats"))["evicted_keys"]
        await ask(client, "CONFIG", "RESETSTAT")


async def without_scripts(_scene: Scene, redis: RedisServer, _chance: Random) -> None:
    """Forgets the scripts it was given."""
    async with admin(redis) as client:
        await ask(client, "SCRIPT", "FLUSH")


async def without_group(scene: Scene, redis: RedisServer, _chance: Random) -> None:
    """The consumer group is deleted."""
    async with admin(redis) as client:
        await ask(client, "XGROUP", "DESTROY", scene.place.stream, scene.place.settings.group)


async def without_stream(scene: Scene, redis: RedisServer, _chance: Random) -> None:
    """The stream is deleted, and its group with it."""
    async with forgetting(scene), admin(redis) as client:
        await ask(client, "DEL", scene.place.stream)


async def emptied(scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Emptied, with entries in it."""
    async with forgetting(scene):
        await flushed(scene, redis, chance)


async def flushed(_scene: Scene, redis: RedisServer, _chance: Random) -> None:
    """FLUSHALL."""
    async with admin(redis) as client:
        await ask(client, "FLUSHALL")


async def without_files(scene: Scene, redis: RedisServer, _chance: Random) -> None:
    """Killed, and started with an empty directory."""
    async with forgetting(scene):
        await to_thread.run_sync(redis.kill)
        shutil.rmtree(data_of(redis))
        await to_thread.run_sync(redis.start)


async def back_in_time(scene: Scene, redis: RedisServer, chance: Random) -> None:
    """Killed, and started from an older copy of its append-only file."""
    data = data_of(redis)
    owner = data.stat()
    copy = redis.directory / "copy"
    await to_thread.run_sync(partial(shutil.copytree, data, copy))
    await anyio.sleep(chance.uniform(0.5, 4))
    async with forgetting(scene):
        await to_thread.run_sync(redis.kill)
        shutil.rmtree(data)
        copy.rename(data)
        for path in (data, *data.rglob("*")):
            shutil.chown(path, owner.st_uid, owner.st_gid)
        await to_thread.run_sync(redis.start)


REDIS_FAULTS: Mapping[str, Fault] = {
    "killed": killed,
    "stopped": stopped,
    "hung": hung,
    "slow": slow,
    "busy with a script": busy,
    "connections cut": cut,
    "too many clients": crowded,
    "became a replica": replica,
    "out of memory": full,
    "scripts flushed": without_scripts,
    "group deleted": without_group,
    "amnesia: stream deleted": without_stream,
    "amnesia: emptied": emptied,
    "amnesia: files removed": without_files,
    "amnesia: back in time": back_in_time,
}
#: What may happen to the Redis that has claims and nothing else. Amnesia needs no more care there.
CLAIMS_FAULTS: Mapping[str, Fault] = {
    "killed": killed,
    "stopped": stopped,
    "hung": hung,
    "became a replica": replica,
    "out of memory": full,
    "amnesia: emptied": flushed,
    "amnesia: claims evicted": evicting,
}


def data_of(redis: RedisServer) -> Path:
    """The directory of its append-only file."""
    return redis.directory / "data"


@asynccontextmanager
async def admin(redis: RedisServer) -> AsyncGenerator[Redis]:
    """One connection, made before the fault and kept through it."""
    async with connect(redis.url, timeout_ms=20_000) as pool, pool.client() as client:
        await until(partial(ask, client, "PING"))
        yield client


async def ask(client: Redis, *words: str | int) -> Any:  # noqa: ANN401 - each command has its own reply
    """Send one command."""
    return await cast("Awaitable[Any]", client.execute_command(*words))


@asynccontextmanager
async def forgetting(scene: Scene) -> AsyncGenerator[None]:
    """Let Redis lose entries within the block; then have the producer send again what no worker had read.

    The producer is held meanwhile: it is not to take for lost what it only just sent.
    """
    async with scene.load.held:
        yield
        stream_ids = await _insist(partial(scene.place.command, "EVAL", IDS, 1, scene.place.stream))
        missing = scene.journal.missing(stream_ids)
        rows = await _insist(partial(scene.place.fetch, NOT_ON_RECORD, missing))
        scene.load.again(scene.journal.lose(row["id"] for row in rows))


async def _insist(attempt: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - whatever it gives
    with anyio.fail_after(60):
        while True:
            try:
                return await attempt()
            except AWAY:
                await anyio.sleep(0.1)
