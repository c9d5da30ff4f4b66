"""What a stream and its group say of themselves, for whoever asks. Nothing here makes or changes either."""

from collections.abc import AsyncGenerator, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from streams.connection import GroupLost, call, redis_errors
from streams.entry import Entry, EntryId, entries
from streams.group import Progress, progress_of

PROGRESS = (files("streams") / "lua" / "progress.lua").read_text(encoding="utf-8")

PENDING_AT_ONCE = 1000
ENTRIES_AT_ONCE = 2000
BYTES_AT_ONCE = 4 * 1024 * 1024  #: what one reply should hold at most, names and values
FIRST_ENTRIES = 64


class StreamState(NamedTuple):
    """A stream: its entries now, the last id it gave, and how many were ever added (Redis ≥ 7, else None)."""

    length: int
    last: EntryId
    added: int | None


class Delivery(msgspec.Struct, frozen=True):
    """An entry that is pending: with whom, since when (milliseconds), and how often it was delivered."""

    consumer: str
    idle_ms: int
    deliveries: int


class Consumer(msgspec.Struct, frozen=True):
    """A consumer of a group: how many entries it holds, and how long ago it last asked for some.

    :ivar asking_counts: false before Redis 7.2, where `idle_ms` tells since when it was given none
    """

    name: str
    pending: int
    idle_ms: int
    asking_counts: bool


async def stream_state(redis: Redis, stream: str) -> StreamState | None:
    """The stream's state; None where there is no such stream."""
    if await call(redis, "TYPE", stream) == "none":
        return None
    told = _named(await call(redis, "XINFO STREAM", stream))
    return StreamState(
        told["length"], EntryId.parse(told["last-generated-id"]), told.get("entries-added")
    )


async def last_delivered(redis: Redis, stream: str, group: str) -> EntryId | None:
    """How far the group has read; None where there is no such group."""
    if await call(redis, "TYPE", stream) == "none":
        return None
    for reply in await call(redis, "XINFO GROUPS", stream):
        told = _named(reply)
        if told["name"] == group:
            return EntryId.parse(told["last-delivered-id"])
    return None


async def delivery(redis: Redis, stream: str, group: str, entry_id: str) -> Delivery | None:
    """Who holds the entry unacknowledged; None where nobody does."""
    try:
        found = await call(redis, "XPENDING", stream, group, entry_id, entry_id, 1)
    except GroupLost:
        return None
    return Delivery(*found[0][1:]) if found else None


async def oldest_pending(redis: Redis, stream: str, group: str) -> tuple[EntryId, Delivery] | None:
    """The oldest entry that is pending in the group; None where none is."""
    try:
        found = await call(redis, "XPENDING", stream, group, "-", "+", 1)
    except GroupLost:
        return None
    return (EntryId.parse(found[0][0]), Delivery(*found[0][1:])) if found else None


async def consumers(redis: Redis, stream: str, group: str) -> list[Consumer]:
    """The group's consumers, by name."""
    try:
        found = map(_named, await call(redis, "XINFO CONSUMERS", stream, group))
    except GroupLost:
        return []
    return sorted(
        (Consumer(it["name"], it["pending"], it["idle"], "inactive" in it) for it in found),
        key=lambda it: it.name,
    )


async def progress(redis: Redis, stream: str, group: str) -> Progress | None:
    """How far the group has come; None where there is no such group."""
    script = redis.register_script(PROGRESS)
    async with redis_errors(redis):
        reply = await script(keys=[stream, progress_of(stream, group)], args=[group])
    return Progress(*reply) if reply else None


async def first_entry_id(redis: Redis, stream: str, after: EntryId | None) -> EntryId | None:
    """The id of the stream's first entry behind `after`; None where there is none."""
    start = f"({after}" if after else "-"
    found = await call(redis, "XRANGE", stream, start, "+", "COUNT", 1)
    return EntryId.parse(found[0][0]) if found else None


async def pending_ids(redis: Redis, stream: str, group: str) -> AsyncGenerator[EntryId]:
    """The ids of all that is pending in the group, oldest first."""
    first = "-"
    while True:
        try:
            found = await call(redis, "XPENDING", stream, group, first, "+", PENDING_AT_ONCE)
        except GroupLost:
            return
        for item in found:
            yield EntryId.parse(item[0])
        if len(found) < PENDING_AT_ONCE:
            return
        first = f"({found[-1][0]}"


async def entry_of(redis: Redis, stream: str, entry_id: str) -> Entry | None:
    """The entry as it is in the stream; None where it is not, or not any more."""
    found = entries(stream, await call(redis, "XRANGE", stream, entry_id, entry_id))
    return found[0] if found else None


async def entries_between(
    redis: Redis, stream: str, first: EntryId | None, last: EntryId
) -> AsyncGenerator[list[Entry]]:
    """The stream's entries from `first` to `last`, both included, some at a time, in bounded memory."""
    start, count = str(first or "-"), FIRST_ENTRIES
    while True:
        found = entries(
            stream, await call(redis, "XRANGE", stream, start, str(last), "COUNT", count)
        )
        if found:
            yield found
        if len(found) < count:
            return
        start, count = f"({found[-1].id}", _next_count(found)


def _next_count(found: Sequence[Entry]) -> int:
    """How many entries to ask for next: Redis counts entries and not bytes."""
    size = sum(sum(map(len, entry.fields or ())) for entry in found)
    return max(1, min(ENTRIES_AT_ONCE, BYTES_AT_ONCE * len(found) // (size or 1), 4 * len(found)))


def _named(reply: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
