"""`check`: which commands a Redis lets us use, on the very keys, without using any of them.

Redis judges rights when a transaction queues a command, so each is queued and then all are discarded. That
works in every version and needs no right of an administrator's, as ACL DRYRUN and ACL GETUSER do.
Source: https://redis.io/docs/latest/develop/using-commands/transactions/#errors-inside-a-transaction
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from streams.connection import call, redis_errors
from streams.dead_letters import dead_letters_of
from streams.group import progress_of
from worker.operate.finding import Finding, fail, ok, warn
from worker.settings import Settings

Command = tuple[str, ...]


def stream_commands(stream: str, group: str) -> list[Command]:
    """What a worker does with a stream and what stands beside it, its scripts included."""
    dead, index = dead_letters_of(stream), f"{dead_letters_of(stream)}:index"
    progress, attempts = progress_of(stream, group), f"{{{stream}}}:attempts:{group}"
    return [
        ("EXISTS", stream),
        ("XREADGROUP", "GROUP", group, "c", "STREAMS", stream, ">"),
        ("XGROUP", "CREATE", stream, group, "0", "MKSTREAM"),
        ("XGROUP", "DELCONSUMER", stream, group, "c"),
        ("XINFO", "STREAM", stream),
        ("XINFO", "GROUPS", stream),
        ("XINFO", "CONSUMERS", stream, group),
        ("XPENDING", stream, group),
        ("XCLAIM", stream, group, "c", "0", "0-1"),
        ("XRANGE", stream, "-", "+"),
        ("XLEN", stream),
        ("XACK", stream, group, "0-1"),
        ("XTRIM", stream, "MINID", "0-1"),
        ("XADD", dead, "*", "n", "v"),
        ("HEXISTS", index, "0-1"),
        ("HSET", index, "0-1", "0-1"),
        ("HINCRBY", progress, "settled", "0"),
        ("HMGET", progress, "settled"),
        ("HSET", progress, "settled", "0"),
        ("HINCRBY", attempts, "0-1", "1"),
        ("HDEL", attempts, "0-1"),
        *SCRIPTS,
    ]


def claim_commands(stream: str) -> list[Command]:
    """What a worker does with claims."""
    key = f"idempotency:order:{{{stream}}}:{'0' * 64}"
    return [("SET", key, "held", "NX", "EX", "1"), ("GET", key), ("DEL", key), *SCRIPTS]


SCRIPTS: list[Command] = [
    ("EVALSHA", "0" * 40, "0"),
    ("SCRIPT", "LOAD", "return 1"),
]


async def rights(
    redis: Redis, settings: Settings, stream: str, *, streams: bool, claims: bool
) -> Finding:
    """Whether we may do all that a worker does with one stream, its claims, or both."""
    what = f"rights on {stream}"
    commands = stream_commands(stream, settings.group) if streams else []
    commands += claim_commands(stream) if claims else []
    try:
        denied = await denials(redis, commands)
    except exceptions.NoPermissionError as error:
        return warn(what, f"not checked: {error}", "let this user use MULTI and DISCARD as well")
    if not denied:
        return ok(what, "every command that a worker uses")
    names = sorted({_named(command) for command in denied})
    rules = " ".join(f"+{name.lower().replace(' ', '|')}" for name in names)
    keys = " ".join(f"~{pattern}" for pattern in _patterns(stream, streams=streams, claims=claims))
    return fail(
        what,
        f"not allowed: {', '.join(names)}",
        "allow these commands on these keys",
        f"redis-cli ACL SETUSER {await _user(redis)} {rules} {keys}",
    )


async def _user(redis: Redis) -> str:
    try:
        return str(await call(redis, "ACL WHOAMI"))
    except exceptions.NoPermissionError:
        return "USER"


def _named(command: Command) -> str:
    return " ".join(command[:2]) if command[0] in ("XGROUP", "XINFO", "SCRIPT") else command[0]


def _patterns(stream: str, *, streams: bool, claims: bool) -> list[str]:
    ours = [stream, f"{{{stream}}}:*"] if streams else []
    return ours + ([f"idempotency:order:{{{stream}}}:*"] if claims else [])


async def denials(redis: Redis, commands: Sequence[Command]) -> list[Command]:
    """Those of the commands that we may not use. Nothing is done.

    :raises NoPermissionError: transactions themselves are not allowed
    :raises RedisUnavailable: no answer
    """
    denied: list[Command] = []
    async with _connection(redis) as connection:
        await _told(connection, "MULTI")
        for command in commands:
            try:
                await _told(connection, *command)
            except exceptions.NoPermissionError:
                denied.append(command)
            except exceptions.ResponseError:  # a replica, or full memory: not the user's rights
                pass
        await _told(connection, "DISCARD")
    return denied


async def _told(connection: Any, *words: str) -> None:  # noqa: ANN401 - of redis-py, untyped
    await connection.send_command(*words)
    await connection.read_response()


@asynccontextmanager
async def _connection(redis: Redis) -> AsyncGenerator[Any]:
    """A connection of one's own, closed on leaving: what is queued there goes with it."""
    async with redis_errors(redis):
        connection: Any = await redis.connection_pool.get_connection()
        try:
            yield connection
        finally:
            await connection.disconnect()
            await redis.connection_pool.release(connection)
