"""Publish orders from Python: the client side of the wire, pipelined.

It writes its commands and reads their replies itself, where redis-py has a pipeline: that one
forgets the replies that came before one was lost, and packs commands in Python. This one can say of
each order whether it is in the stream, is not, or may be, and is three to four times as fast.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import repeat
from math import inf
from typing import cast

import anyio
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from streams import connection

REPLY_TIMEOUT_MS = 10_000  #: a Redis that forks or loads is silent for seconds, and not gone
CHUNK_ORDERS_MAX = 1000
CHUNK_BYTES_MAX = 1 << 20

#: A `Decimal` is written exactly, by `str`. There is no float: a float price is no price.
Value = str | int | Decimal | None


class PublishFailed(Exception):
    """Not every order has an entry that we know of; `str(error)` says why.

    The orders fall into three runs, in the order given: the first `len(ids)` were answered, the
    next `unsure` are in the stream or are not, the last `unsent` are not.

    :ivar ids: entry ids of the orders answered, None for each that Redis refused
    """

    def __init__(self, reason: str, ids: list[str | None], unsure: int, unsent: int) -> None:
        super().__init__(reason)
        self.ids = ids
        self.unsure = unsure
        self.unsent = unsent


class PublishRefused(PublishFailed):
    """Redis answered no to one order at least: an id that does not grow, full memory, a replica."""


class PublishUncertain(PublishFailed):
    """A reply was lost. Publish the unsure and the unsent again, their fields unchanged.

    An unsure order that was in the stream is there twice then, and the worker suppresses the second
    as a duplicate: same content, within the window.
    """


class PublishUnreachable(PublishFailed):
    """No connection to Redis could be had; nothing of the rest was sent."""


def connect(url: str) -> Redis:
    """A client that never repeats a command by itself. It connects at its first command.

    :raises ValueError: the URL is not one of redis://, rediss:// or unix://
    """
    return connection.connect(url, timeout_ms=REPLY_TIMEOUT_MS)


class Producer:
    """Adds entries to one stream. It never retries: a repeated `XADD` is a second entry.

    :param maxlen: trim the stream to about so many entries. Redis trims what no worker has read,
        too, and such orders are lost: leave it out unless something else bounds the backlog
    """

    def __init__(self, redis: Redis, stream: str, *, maxlen: int | None = None) -> None:
        self._redis = redis
        trim = () if maxlen is None else ("MAXLEN", "~", str(maxlen))
        self._xadd = ("XADD", stream, *trim)

    async def publish(
        self, orders: Sequence[Mapping[str, Value]], *, ids: Sequence[str] | None = None
    ) -> list[str]:
        """Add each order as an entry of flat fields and return the entry ids, in order.

        Fields whose value is None are left out. Publish a long series in parts: all commands of a
        call are checked and held in memory before the first is sent. A call that is cancelled may
        have published any of its orders; shield it where that matters.

        :param ids: entry ids to give the orders, growing; Redis gives them where there are none
        :raises TypeError: a value is a float, or anything else but text, an integer or a `Decimal`
        :raises ValueError: an order has no field, or text that is no Unicode; too few or many ids
        :raises PublishFailed: one of its subclasses says what became of each order
        Source: https://redis.io/docs/latest/commands/xadd/
        """
        if ids is not None and len(ids) != len(orders):
            raise ValueError(f"{len(ids)} ids for {len(orders)} orders")
        commands = list(map(self._command, orders, repeat("*") if ids is None else ids))
        replies: list[str | None] = []
        for chunk in _chunks(commands):
            await self._send(chunk, replies, unsent=len(commands) - len(replies) - len(chunk))
        return [reply for reply in replies if reply is not None]

    def _command(self, order: Mapping[str, Value], entry_id: str) -> bytes:
        words = [*self._xadd, entry_id]
        for name, value in order.items():
            if value is not None:
                words += (name, value if isinstance(value, str) else _text(name, value))
        if len(words) == len(self._xadd) + 1:
            raise ValueError("an order needs at least one field")
        try:
            return connection.pack(tuple(words))
        except UnicodeEncodeError as error:
            raise ValueError(f"text that is no Unicode: {error.object!a}") from None

    async def _send(self, chunk: list[bytes], replies: list[str | None], unsent: int) -> None:
        """Write one chunk, and append what Redis says to each of its commands to `replies`."""
        answered = len(replies) + len(chunk)
        try:
            link = await self._redis.connection_pool.get_connection()
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise PublishUnreachable(str(error), replies, 0, unsent + len(chunk)) from error
        try:
            await link.send_packed_command(chunk)
            with anyio.fail_after(link.socket_timeout):
                refusal = await _read(link, replies, answered)
            if refusal and refusal.startswith("READONLY"):
                await link.disconnect(nowait=True)  # the next call finds whoever was promoted
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            reason = str(error) or f"no answer within {link.socket_timeout} s"
            raise PublishUncertain(reason, replies, answered - len(replies), unsent) from error
        finally:
            with anyio.CancelScope(shield=True):
                await self._redis.connection_pool.release(link)
        if refusal:
            raise PublishRefused(refusal, replies, 0, unsent)


async def _read(link: AbstractConnection, replies: list[str | None], answered: int) -> str | None:
    """Append replies until so many are answered; gives what Redis said when it first refused one.

    Without redis-py's own time limit, which is set for each reply and doubles what one costs.
    """
    refusal: str | None = None
    while len(replies) < answered:
        try:
            reply = cast("object", await link.read_response(timeout=inf))
            replies.append(_entry_id(reply))
        except exceptions.ResponseError as error:
            replies.append(None)
            refusal = refusal or f"{error.status_code or ''} {error}".lstrip()
    return refusal


def _text(name: str, value: object) -> str:
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{name} is a {type(value).__name__}; give text, an integer or a Decimal")


def _entry_id(reply: object) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)  # as the client decodes


def _chunks(commands: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Cut where a chunk would hold too many commands or bytes; one command always fits."""
    chunk: list[bytes] = []
    size = 0
    for command in commands:
        if chunk and (len(chunk) == CHUNK_ORDERS_MAX or size + len(command) > CHUNK_BYTES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(command)
        size += len(command)
    if chunk:
        yield chunk
