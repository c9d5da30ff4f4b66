"""A consumer group as one consumer sees it: read, take over, what is pending, re-create.

Acknowledging is not here: it belongs to the script that settles a batch, after its outcome is on record.
"""

from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
from redis.commands.core import AsyncScript

from streams.connection import GroupLost, call, connect, redis_errors
from streams.entry import Entry, EntryId, entries

LUA = files("streams") / "lua"
OWN_PENDING_MAX = 100_000  #: more than one consumer can hold
TRIMMED_AT_ONCE = 10_000  #: about so many entries go in one step, so that Redis is not held up


class Pending(NamedTuple):
    """What is delivered and not acknowledged, over all consumers of the group."""

    entries: int
    oldest: EntryId | None


class Progress(NamedTuple):
    """How far a group has come, at one moment; None where Redis does not tell.

    Entries added to the stream = settled + pending + waiting + lost, from the group's making on. `lost`
    counts what was trimmed or deleted before the group read it. It takes Redis 7, which counts what is added.
    """

    settled: int
    pending: int
    waiting: int | None
    lost: int | None
    last_read: str


class TakenOver(NamedTuple):
    """Entries that are ours now, trimmed ones without fields, and where to go on; "" after the last."""

    entries: list[Entry]
    after: str


class Group:
    """One consumer's view of one stream's group. Reads block on a connection of their own.

    Every method raises `RedisUnavailable` where Redis does not answer in time and `GroupLost` where the
    group or the stream is gone. After any error of a read, entries may be ours that we never saw: read our
    own history from "0" before reading on.
    """

    def __init__(
        self, url: str, stream: str, name: str, consumer: str, *, timeout_ms: int, block_ms: int
    ) -> None:
        self.stream, self.name, self.consumer = stream, name, consumer
        self.block_ms = block_ms
        self._redis = connect(url, timeout_ms=timeout_ms)
        self._reader = connect(url, timeout_ms=timeout_ms, block_ms=block_ms)
        self._keys = [stream, progress_of(stream, name)]
        self._attempts = f"{{{stream}}}:attempts:{name}"
        self._create = self._script("create_group")
        self._take_over = self._script("take_over")
        self._progress = self._script("progress")
        self._trim = self._script("trim")
        self._remove_consumers = self._script("remove_consumers")

    def _script(self, name: str) -> AsyncScript:
        return self._redis.register_script((LUA / f"{name}.lua").read_text())

    async def aclose(self) -> None:
        """Close both connections."""
        await self._reader.aclose()
        await self._redis.aclose()

    async def create(self) -> bool:
        """Make the group, and the stream, where they are missing. Says whether it did.

        It starts at the beginning of the stream: `$` would lose the backlog, and a position noted
        elsewhere may be another stream's that had this name, for ids can be given again. What was
        acknowledged before is read again, which costs time only.
        """
        async with redis_errors(self._redis):
            return bool(await self._create(keys=self._keys, args=[self.name]))

    async def read_new(self, count: int, *, block: bool) -> list[Entry]:
        """Entries nobody has read yet, at most `count`; waits up to `block_ms` for the first.

        Source: https://redis.io/docs/latest/commands/xreadgroup/
        """
        wait = ("BLOCK", self.block_ms) if block else ()
        return await self._read(count, ">", *wait)

    async def read_own(self, after: str, count: int) -> list[Entry]:
        """This consumer's pending entries behind the id `after`, oldest first; "0" for all."""
        read = await self._read(count, after)
        if not read:
            return []
        deliveries = await self._deliveries(read[0].id, read[-1].id)
        return [msgspec.structs.replace(e, deliveries=deliveries.get(e.id, 1)) for e in read]

    async def _read(self, count: int, after: str, *wait: str | int) -> list[Entry]:
        reply = await call(
            self._reader, "XREADGROUP", "GROUP", self.name, self.consumer, "COUNT", count, *wait,
            "STREAMS", self.stream, after,
        )  # fmt: skip
        return entries(self.stream, reply[0][1]) if reply else []

    async def _deliveries(self, first: str, last: str) -> dict[str, int]:
        """How often each entry was delivered that this consumer holds between two ids, by id."""
        rows = await self._call(
            "XPENDING", self.stream, self.name, first, last, OWN_PENDING_MAX, self.consumer
        )
        return {id_: deliveries for id_, _, _, deliveries in rows}

    async def take_over(self, after: str, count: int, *, idle_ms_min: int) -> TakenOver:
        """Claim entries nobody has acknowledged for a while, oldest first.

        :param after: "" to begin, or what the call before gave
        :param idle_ms_min: milliseconds since the last delivery; longer than a live worker holds one
        """
        start = f"({after}" if after else "-"
        async with redis_errors(self._redis):
            last, claimed, trimmed = await self._take_over(
                keys=self._keys[:1], args=[self.name, self.consumer, idle_ms_min, start, count]
            )
        found = [Entry(self.stream, *row) for row in claimed]
        return TakenOver(found + [Entry(self.stream, id_, None) for id_ in trimmed], last or "")

    async def begin_attempt(self, entry_id: str) -> int:
        """Note that an entry is tried alone; says which attempt it is, from 1."""
        return await self._call("HINCRBY", self._attempts, entry_id, 1)

    async def survived(self, entry_id: str) -> None:
        """Forget the attempts on an entry: it was tried, and the worker lives."""
        await self._call("HDEL", self._attempts, entry_id)

    async def pending(self) -> Pending:
        """How many entries are pending in the whole group, and the oldest."""
        count, oldest, *_ = await self._call("XPENDING", self.stream, self.name)
        return Pending(count, EntryId.parse(oldest) if oldest else None)

    async def progress(self) -> Progress:
        """How far the group has come."""
        async with redis_errors(self._redis):
            reply = await self._progress(keys=self._keys, args=[self.name])
        if not reply:
            raise GroupLost(f"no group {self.name} of the stream {self.stream}")
        return Progress(*reply)

    async def trim(self, before_ms: int) -> int:
        """Trim about as many entries as can go at once that every group has settled; says how many.

        :param before_ms: entries of this millisecond, by their ids, and younger ones stay
        """
        async with redis_errors(self._redis):
            return await self._trim(keys=self._keys[:1], args=[before_ms, TRIMMED_AT_ONCE])

    async def remove_quiet_consumers(self, *, idle_ms_min: int) -> int:
        """Remove other consumers that hold nothing and were not seen for a while. Says how many.

        `XGROUP DELCONSUMER` destroys what is pending, so looking and removing are one step (a script).
        """
        return await self._remove("others", idle_ms_min)

    async def leave(self) -> bool:
        """Remove this consumer, unless it holds entries. Says whether it did."""
        return bool(await self._remove("self", 0))

    async def _remove(self, whose: str, idle_ms_min: int) -> int:
        async with redis_errors(self._redis):
            return await self._remove_consumers(
                keys=[self.stream], args=[self.name, self.consumer, whose, idle_ms_min]
            )

    async def _call(self, *command: str | int) -> Any:  # noqa: ANN401 - each command's own reply
        return await call(self._redis, *command)


def progress_of(stream: str, group: str) -> str:
    """The hash that counts what a group has settled, in the stream's hash slot."""
    return f"{{{stream}}}:progress:{group}"
