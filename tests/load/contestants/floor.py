"""The floor: what the two servers take when nobody computes anything.

Every byte that is sent is made before the start, and no reply is decoded: how long each is, is known.
The calls are the fewest that do the job, a batch each: XREADGROUP, one script that claims, one transaction
of binary COPY, one write of points, one script that marks the claims as stored and acknowledges. Batches
overlap. No program that looks at an order can be faster on the same servers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import asyncpg
import hiredis
import uvloop

from tests.load.contestants.orders import Order, columns, content_hash, line, row
from tests.load.contestants.told import (
    BATCH_SIZE,
    CLAIM_S,
    CONSUMER,
    GROUP,
    IN_FLIGHT,
    REDIS_URL,
    STREAM,
    Points,
    claim_key,
    connect,
)

#: A character for each claim, for a reply whose length does not depend on what it says.
CLAIM = """
local answers = {}
for i, key in ipairs(KEYS) do
  answers[i] = redis.call('SET', key, 'held', 'NX', 'EX', ARGV[1]) and '1' or '0'
end
return table.concat(answers)
"""
#: KEYS 1 stream, 2.. claims  ARGV 1 group, 2 seconds to live, 3.. the entries to acknowledge
SETTLE = """
for i = 2, #KEYS do redis.call('SET', KEYS[i], 'stored', 'EX', ARGV[2]) end
return redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))
"""
ORDERS = """
SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::text[], $8::numeric[], $9::numeric[], $10::numeric[], $11::text[])
"""
DUPLICATES = "SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[])"

_pack = cast("Callable[[tuple[str | bytes | int, ...]], bytes]", hiredis.pack_command)


class _Replies(Protocol):
    """hiredis' parser of replies; its stub leaves the types out."""

    def feed(self, data: bytes, /) -> None: ...

    def gets(self) -> object: ...


class Wire:
    """A connection to Redis that sends bytes and takes so many back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls) -> "Wire":
        """Connect."""
        url = urlsplit(REDIS_URL)
        return cls(*await asyncio.open_connection(url.hostname, url.port, limit=1 << 22))

    async def exchange(self, sent: bytes, length: int) -> bytes:
        """Send bytes, give the reply of that length."""
        self._writer.write(sent)
        return await self._reader.readexactly(length)

    async def ask(self, *words: str | bytes | int) -> tuple[Any, int]:
        """Send a command; gives its reply, and how many bytes it took."""
        self._writer.write(_pack(words))
        replies, length = cast("_Replies", hiredis.Reader()), 0
        while (reply := replies.gets()) is False:
            data = await self._reader.read(1 << 20)
            replies.feed(data)
            length += len(data)
        if isinstance(reply, Exception):
            raise reply
        return reply, length


@dataclass(frozen=True, slots=True)
class Batch:
    """The bytes of one batch, and how long the replies to them are."""

    entries: int
    read_length: int
    claim: bytes
    orders: bytes
    duplicates: bytes
    points: bytes
    settle: bytes


class Builder:
    """Makes all batches of a stream before any of them is read."""

    def __init__(self, wire: Wire, postgres: asyncpg.Connection, claim: str, settle: str) -> None:
        self._wire, self._postgres = wire, postgres
        self._claim, self._settle = claim, settle
        self._seen: set[bytes] = set()

    async def build(self) -> list[Batch]:
        """Look at the whole stream, outside of the group."""
        batches: list[Batch] = []
        after = "-"
        while True:
            entries, length = await self._wire.ask(
                "XRANGE", STREAM, after, "+", "COUNT", BATCH_SIZE
            )
            if not entries:
                return batches
            batches.append(await self._batch(entries, length))
            after = "(" + entries[-1][0].decode()

    async def _batch(self, entries: list[list[Any]], length: int) -> Batch:
        ids = [entry_id.decode() for entry_id, _ in entries]
        fields = [_fields(words) for _, words in entries]
        contents = [content_hash(it) for it in fields]
        orders = [Order.model_validate(it) for it in fields]
        new = [self._is_new(content) for content in contents]
        every = list(zip(contents, ids, orders, new, strict=True))
        rows = [row(content, id_, order) for content, id_, order, is_new in every if is_new]
        repeats = [(id_, order.order_id, content) for content, id_, order, n in every if not n]
        keys = [claim_key(content) for content in contents]
        stored = [claim_key(content) for content, _, _, is_new in every if is_new]
        lines = [line(id_, "accepted" if n else "duplicate", order) for _, id_, order, n in every]
        return Batch(
            len(ids),
            length + len(_read_head()),
            _pack(("EVALSHA", self._claim, len(keys), *keys, CLAIM_S)),
            await self._copied(ORDERS, rows, 11),
            await self._copied(DUPLICATES, repeats, 3),
            "\n".join(lines).encode(),
            _pack(
                ("EVALSHA", self._settle, 1 + len(stored), STREAM, *stored, GROUP, CLAIM_S, *ids)
            ),
        )

    def _is_new(self, content: bytes) -> bool:
        if content in self._seen:
            return False
        self._seen.add(content)
        return True

    async def _copied(self, query: str, rows: list[tuple[Any, ...]], width: int) -> bytes:
        """The rows as Postgres writes them in its own binary format."""
        output = BytesIO()
        arrays: list[Any] = [list(column) for column in columns(rows)] or [[]] * width
        await self._postgres.copy_from_query(query, *arrays, output=output, format="binary")
        return output.getvalue()


def _fields(words: list[bytes]) -> dict[str, str]:
    texts = [word.decode() for word in words]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _read_head() -> bytes:
    """What XREADGROUP says before what XRANGE says."""
    return f"*1\r\n*2\r\n${len(STREAM)}\r\n{STREAM}\r\n".encode()


READ = _pack(("XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", BATCH_SIZE, "STREAMS", STREAM, ">"))


class Lane:
    """One batch at a time, on connections of its own; lanes take the batches in turn."""

    def __init__(self, wire: Wire, postgres: asyncpg.Connection, points: Points) -> None:
        self._wire, self._postgres, self._points = wire, postgres, points

    async def run(self, batches: list[Batch], reading: asyncio.Lock) -> None:
        """Take batches until none is left."""
        while batches:
            async with reading:
                if not batches:
                    return
                batch = batches.pop()
                await self._wire.exchange(READ, batch.read_length)
            await self._wire.exchange(batch.claim, batch.entries + len(str(batch.entries)) + 5)
            await self._record(batch)
            await self._points.write(batch.points)
            await self._wire.exchange(batch.settle, len(str(batch.entries)) + 3)

    async def _record(self, batch: Batch) -> None:
        async with self._postgres.transaction():
            for table, rows in (("orders", batch.orders), ("duplicates", batch.duplicates)):
                await self._postgres.copy_to_table(table, source=BytesIO(rows), format="binary")


async def _lane(points: Points) -> Lane:
    return Lane(await Wire.open(), await connect(), points)


async def main() -> None:
    """Build every batch, drain the stream, and wait to be stopped."""
    wire, postgres = await Wire.open(), await connect()
    claim, _ = await wire.ask("SCRIPT", "LOAD", CLAIM)
    settle, _ = await wire.ask("SCRIPT", "LOAD", SETTLE)
    batches = await Builder(wire, postgres, claim.decode(), settle.decode()).build()
    batches.reverse()
    points, reading = Points(), asyncio.Lock()
    lanes: list[Awaitable[None]] = [
        (await _lane(points)).run(batches, reading) for _ in range(IN_FLIGHT)
    ]
    await asyncio.gather(*lanes)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
