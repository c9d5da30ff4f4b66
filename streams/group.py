"""A consumer group as one consumer sees it: read, take over, what is pending, re-create.

Acknowledging is not here: it belongs to the script that settles a batch, after its outcome is on record.
"""

from importlib.resources import files
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from streams.connection import call, connect, redis_errors
from streams.entry import Entry, EntryId, entries

REMOVE_CONSUMERS = (files("streams") / "lua" / "remove_consumers.lua").read_text()


class Pending(NamedTuple):
    """What is delivered and not acknowledged, over all consumers of the group."""

    entries: int
    oldest: EntryId | None


class TakenOver(NamedTuple):
    """Entries that are ours now, and where to go on: "0-0" after the last.

    Trimmed entries come without fields: Redis ≥ 7 names them, and they are pending no more. Redis 6.2
    does not even name them: `nameless` says that our own history holds some now.
    """

    cursor: str
    entries: list[Entry]
    nameless: bool


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
        self._remove_consumers = self._redis.register_script(REMOVE_CONSUMERS)

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
        try:
            await self._call("XGROUP", "CREATE", self.stream, self.name, "0", "MKSTREAM")
        except ResponseError as error:
            if error.args and str(error.args[0]).startswith("BUSYGROUP"):
                return False
            raise
        return True

    async def read_new(self, count: int, *, block: bool) -> list[Entry]:
        """Entries nobody has read yet, at most `count`; waits up to `block_ms` for the first.

        Source: https://redis.io/docs/latest/commands/xreadgroup/
        """
        wait = ("BLOCK", self.block_ms) if block else ()
        return await self._read(count, ">", *wait)

    async def read_own(self, after: str, count: int) -> list[Entry]:
        """This consumer's pending entries behind the id `after`, oldest first; "0" for all."""
        return await self._read(count, after)

    async def _read(self, count: int, after: str, *wait: str | int) -> list[Entry]:
        reply = await call(
            self._reader, "XREADGROUP", "GROUP", self.name, self.consumer, "COUNT", count, *wait,
            "STREAMS", self.stream, after,
        )  # fmt: skip
        return entries(self.stream, reply[0][1]) if reply else []

    async def take_over(self, after: str, count: int, *, idle_ms_min: int) -> "TakenOver":
        """Claim entries nobody has acknowledged for a while, oldest first.

        :param after: "0-0", or the cursor of the call before
        :param idle_ms_min: milliseconds since the last delivery; longer than a live worker holds one
        Source: https://redis.io/docs/latest/commands/xautoclaim/
        """
        reply = await self._call(
            "XAUTOCLAIM", self.stream, self.name, self.consumer, idle_ms_min, after, "COUNT", count
        )
        trimmed = [Entry(self.stream, id_, None) for id_ in (reply[2] if len(reply) > 2 else ())]
        found = entries(self.stream, reply[1])
        return TakenOver(reply[0], found + trimmed, len(found) < len(reply[1]))

    async def pending(self) -> Pending:
        """How many entries are pending in the whole group, and the oldest."""
        count, oldest, *_ = await self._call("XPENDING", self.stream, self.name)
        return Pending(count, EntryId.parse(oldest) if oldest else None)

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
