"""`check`: a Redis, for streams or for claims."""

import math
from collections.abc import AsyncGenerator, Mapping
from time import time
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from streams.connection import call
from worker.operate.check_rights import rights
from worker.operate.check_streams import look_at_stream
from worker.operate.figures import stream_figures
from worker.operate.finding import Finding, clock, fail, ok, warn
from worker.settings import Settings

VERSION_MIN = (6, 2)
FULL_WARN, FULL_FAIL = 0.75, 0.9  #: of the memory it may use
STREAM_WARN = 0.5  #: of that, in one stream

Info = Mapping[str, Any]


async def look_at_redis(
    redis: Redis, settings: Settings, *, streams: bool, claims: bool
) -> AsyncGenerator[Finding]:
    """Look at the Redis with the streams, the claims, or both.

    :raises RedisUnavailable: it does not answer
    :raises ResponseError: it refuses what a worker cannot do without
    """
    for stream in settings.streams:
        yield await rights(redis, settings, stream, streams=streams, claims=claims)
    try:
        async for finding in _server(redis, settings, streams=streams):
            yield finding
    except NoPermissionError as error:  # a worker does without
        do = "let this user use INFO, TIME and MEMORY, or look yourself"
        yield warn("server", f"not told, for it refuses: {error}", do)
    if streams:
        for stream in settings.streams:
            figures = await stream_figures(redis, stream, settings.group)
            for finding in look_at_stream(figures, settings):
                yield finding


async def _server(redis: Redis, settings: Settings, *, streams: bool) -> AsyncGenerator[Finding]:
    cli = f'redis-cli -u "${"REDIS_URL" if streams else "DEDUPE_REDIS_URL"}"'
    asked_at = time()
    seconds, micros = map(int, await call(redis, "TIME"))
    yield clock(seconds * 1000 + micros / 1000, asked_at)
    info = cast("Info", await call(redis, "INFO"))
    yield _version(info)
    yield _role(info)
    yield _policy(info, cli, streams=streams)
    if streams:
        yield _persistence(info, cli)
    yield _memory(info)
    if streams:
        for stream in settings.streams:
            yield await _size(redis, stream, _limit(info))


def _version(info: Info) -> Finding:
    version = str(info["redis_version"])
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    if tuple(map(int, version.split(".")[:2])) < VERSION_MIN:
        return fail("version", name, "Ordergate needs Redis 6.2 or newer, or Valkey: update it")
    if version.startswith("6."):
        return ok("version", f"{name}; entries lost before reading are counted from 7 on")
    return ok("version", name)


def _role(info: Info) -> Finding:
    if info.get("role") == "master":
        return ok("role", "takes writes")
    return fail("role", "a replica: it takes no writes", "let the address lead to the primary")


def _policy(info: Info, cli: str, *, streams: bool) -> Finding:
    what, policy = "maxmemory-policy", str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction" or policy.startswith("volatile-"):
        evicts = "" if policy == "noeviction" else ": when full it evicts claims, never a stream"
        return ok(what, policy + evicts)
    if not streams:
        return ok(what, f"{policy}: claims may be evicted, which costs work and no order")
    mends = f"{cli} CONFIG SET maxmemory-policy noeviction"
    limited = bool(info.get("maxmemory"))
    finding = fail if limited else warn
    when = (
        "when full, it evicts whole streams"
        if limited
        else "with a maxmemory it would evict streams"
    )
    return finding(what, f"{policy}: {when}", "choose one that never evicts a stream", mends)


def _persistence(info: Info, cli: str) -> Finding:
    what = "persistence"
    broken = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if info.get(name, "ok") != "ok"
    ]
    if broken:
        return fail(
            what,
            f"{', '.join(broken)}: err",
            "see its log; is the disk full?",
            f"{cli} INFO persistence",
        )
    if info.get("aof_enabled"):
        return ok(what, "append-only file")
    return warn(
        what,
        "no append-only file: a crash loses what came since the last snapshot",
        "switch it on, also in redis.conf",
        f"{cli} CONFIG SET appendonly yes",
    )


def _limit(info: Info) -> int:
    return int(info.get("maxmemory") or 0) or int(info.get("total_system_memory") or 0)


def _memory(info: Info) -> Finding:
    used, limit = int(info["used_memory"]), _limit(info)
    of = "maxmemory" if info.get("maxmemory") else "the machine's memory, with no maxmemory set"
    share = used / limit if limit else math.nan
    says = f"{size(used)} used, {share:.0%} of {of}" if limit else f"{size(used)} used"
    do = "give it more, set WORKER_RETENTION, or let workers catch up: see `status`"
    if share >= FULL_FAIL:
        return fail("memory", says, do)
    return warn("memory", says, do) if share >= FULL_WARN else ok("memory", says)


async def _size(redis: Redis, stream: str, limit: int) -> Finding:
    length = await call(redis, "XLEN", stream)
    used = int(await call(redis, "MEMORY USAGE", stream) or 0)
    says = f"{length:,} entries, {size(used)}"
    if not limit:
        return ok(f"stream {stream}", says)
    says += f", {used / limit:.1%} of what Redis may use"
    if used / limit < STREAM_WARN:
        return ok(f"stream {stream}", says)
    do = "set WORKER_RETENTION, so that settled entries are trimmed"
    return warn(f"stream {stream}", says, do)


def size(number: int) -> str:
    """Bytes as a person reads them."""
    scaled, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if scaled < 1024:
            break
        scaled, unit = scaled / 1024, larger
    return f"{scaled:,.1f} {unit}"
