"""How we talk to Redis: explicit about protocol, replies, retries and time, and about who must act.

redis-py repeats a command by itself after a lost reply, and cuts a blocking read at its socket timeout;
both are switched off here, for an `XREADGROUP` or `XADD` that is repeated blindly strands or doubles entries.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import hiredis
from redis import exceptions
from redis.asyncio import Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo

#: Commands whose replies redis-py would reshape; ours come as Redis sent them, the same in every version.
RAW_REPLIES = (
    "XREADGROUP",
    "XPENDING",
    "XRANGE",
    "XINFO GROUPS",
    "XINFO CONSUMERS",
    "XINFO STREAM",
)

#: Error replies that pass: a replica after a failover, full memory, loading, a slow script, no quorum.
#: Source: https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors and redis' server.c.
NOT_NOW = (
    "READONLY",
    "OOM",
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MISCONF",
    "NOREPLICAS",
)


#: Where Redis 6.2 puts the code of an error that ended a script.
WITHIN_SCRIPT = re.compile(r"@user_script: ?\d+: -?(\w+)")


#: Made once. redis-py would look its own version up in the file system for each connection that it makes.
DRIVER = DriverInfo()


class RedisUnavailable(Exception):
    """Redis did not do it, or did it and the answer was lost. Nobody must act; it passes.

    :ivar answered: Redis refused, with an error of its own
    """

    def __init__(self, reason: str, *, answered: bool = False) -> None:
        super().__init__(reason)
        self.answered = answered


class GroupLost(Exception):
    """The stream or its consumer group is gone; `Group.create` makes it anew."""

    answered = True


class _Client(Redis):
    """Closes its connections even where its owner has been cancelled, within the limit on connecting."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """See `Redis.aclose`, which is called at the end of `async with`, too."""
        with anyio.CancelScope(shield=True):
            await super().aclose(close_connection_pool)


def connect(url: str, *, timeout_ms: int, block_ms: int = 0) -> Redis:
    """A client that says what happened instead of trying again. Connects at its first command.

    Text is decoded with `surrogateescape`: bytes that are not UTF-8 survive the way there and back.

    :param timeout_ms: bound on connecting, and on a command beyond `block_ms`
    :param block_ms: the longest that this client's commands block on the server
    """
    client = _Client.from_url(  # pyright: ignore[reportUnknownVariableType]
        url,
        protocol=2,
        legacy_responses=False,
        decode_responses=True,
        encoding_errors="surrogateescape",
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        driver_info=DRIVER,
        socket_connect_timeout=timeout_ms / 1000,
        socket_timeout=(timeout_ms + block_ms) / 1000,
        socket_keepalive=True,
    )
    pool = client.connection_pool
    pool.connection_class = PACKING[pool.connection_class]
    for command in RAW_REPLIES:
        client.set_response_callback(command, _as_sent)
    return client


class _Packing(AbstractConnection):
    """Packs commands in C. redis-py's own asyncio connection does so in Python, a tenth of our time."""

    def pack_command(self, *args: Any) -> list[bytes]:  # noqa: ANN401 - redis-py's own words
        """One command as bytes; the first word may be two, as in `XINFO STREAM`."""
        return [pack((*args[0].split(), *args[1:]))]

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        """Send it. :raises ConnectionError: also where Redis has closed the connection

        Source: uvloop's `UVHandle._ensure_alive`, which raises RuntimeError where asyncio does not.
        """
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            await self.disconnect(nowait=True)
            raise exceptions.ConnectionError(str(error)) from error

    async def disconnect(self, *args: Any, **how: Any) -> None:  # noqa: ANN401 - redis-py's own words
        """Close; a server that does not take what it was sent until then is left without a word."""
        writer: asyncio.StreamWriter | None = self._writer
        try:
            await super().disconnect(*args, **how)
        except exceptions.TimeoutError:
            if writer:
                writer.transport.abort()


class _Tcp(_Packing, Connection):
    """`redis://`."""


class _Tls(_Packing, SSLConnection):
    """`rediss://`."""


class _Unix(_Packing, UnixDomainSocketConnection):
    """`unix://`."""


#: Ours for redis-py's own, which it chooses by the address.
PACKING: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}

#: A command as bytes. hiredis' stub gives a tuple of one word and no result.
pack = cast("Callable[[tuple[str | bytes | int, ...]], bytes]", hiredis.pack_command)


def _as_sent(response: Any, **_options: Any) -> Any:  # noqa: ANN401 - whatever Redis says
    return response


async def call(redis: Redis, *command: str | int) -> Any:  # noqa: ANN401 - each command's own reply
    """Send one command. :raises RedisUnavailable, GroupLost: see `redis_errors`"""
    async with redis_errors(redis):
        return await cast("Awaitable[Any]", redis.execute_command(*command))


@asynccontextmanager
async def redis_errors(redis: Redis) -> AsyncGenerator[None]:
    """Raise our errors for redis-py's.

    A server that turned out to be a replica is left: the next command connects anew, and finds the
    one that was promoted where the address leads there.

    :raises RedisUnavailable: no answer in time, or one of `NOT_NOW`
    :raises GroupLost: `NOGROUP`, or `UNBLOCKED` where a read was blocking
    """
    try:
        yield
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise RedisUnavailable(f"{type(error).__name__}: {error}") from error
    except exceptions.ResponseError as error:
        # redis-py cuts the code off where it has a class of its own for it
        reply = f"{error.status_code or ''} {error}".lstrip()
        within = WITHIN_SCRIPT.search(reply)
        code = within[1] if within else reply.partition(" ")[0]
        if code in ("NOGROUP", "UNBLOCKED"):
            raise GroupLost(str(error)) from error
        if code in NOT_NOW:
            if code == "READONLY":
                # Not those in use: redis-py trips over a connection that ends while another task makes it.
                await redis.connection_pool.disconnect(inuse_connections=False)
            raise RedisUnavailable(reply, answered=True) from error
        raise
