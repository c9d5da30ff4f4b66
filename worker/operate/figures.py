"""How streams, their groups and their outcomes stand just now, as plain values for whoever shows them.

Each function asks one server, a few quick questions whatever the backlog; `outcome_totals` alone reads whole
indexes. Nothing here makes or changes anything.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
from redis.asyncio import Redis

from streams.connection import call
from streams.dead_letters import dead_letters_of
from streams.entry import EntryId
from streams.look import Consumer, consumers, first_entry_id, oldest_pending, progress, stream_state
from worker.ledger import Ledger, queries

SQL = queries("operate")


class Oldest(msgspec.Struct, frozen=True):
    """The oldest pending entry: with whom, its own age, since when it is held, how often delivered."""

    entry_id: str
    consumer: str
    age_ms: int
    held_ms: int
    deliveries: int


class StreamFigures(msgspec.Struct, frozen=True):
    """A stream and its group, as Redis has them. None where Redis does not tell (before version 7, mostly).

    :ivar entries: in the stream now, settled ones included
    :ivar waiting: not read by the group yet
    :ivar lag_ms: age of the oldest entry that is not read yet; 0 where there is none
    :ivar pending: read and not acknowledged
    :ivar settled: acknowledged, since the group was made
    :ivar lost: gone from the stream before the group read them, since it was made
    """

    stream: str
    group: str
    has_group: bool = False
    entries: int = 0
    waiting: int | None = 0
    lag_ms: int = 0
    pending: int = 0
    oldest: Oldest | None = None
    settled: int = 0
    lost: int | None = 0
    dead_letters: int = 0
    consumers: list[Consumer] = []


class OutcomeFigures(msgspec.Struct, frozen=True):
    """Outcomes of one stream, by kind."""

    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0

    @property
    def all(self) -> int:
        """Of all kinds."""
        return self.accepted + self.duplicate + self.rejected


class PointFigures(msgspec.Struct, frozen=True):
    """Points of one stream that InfluxDB does not have: owed ones, since when, and refused ones, parked."""

    owed: int = 0
    owed_since: datetime | None = None
    parked: int = 0


async def stream_figures(redis: Redis, stream: str, group: str) -> StreamFigures:
    """A stream and its group.

    :raises RedisUnavailable: no answer
    """
    state = await stream_state(redis, stream)
    dead = await call(redis, "XLEN", dead_letters_of(stream))
    if state is None:
        return StreamFigures(stream, group, dead_letters=dead)
    seconds, micros = map(int, await call(redis, "TIME"))
    now = seconds * 1000 + micros // 1000
    come = await progress(redis, stream, group)
    if come is None:
        first = await first_entry_id(redis, stream, None)
        return StreamFigures(
            stream,
            group,
            entries=state.length,
            waiting=state.length,
            lag_ms=_age_ms(first, now),
            dead_letters=dead,
        )
    unread = await first_entry_id(redis, stream, EntryId.parse(come.last_read))
    return StreamFigures(
        stream,
        group,
        has_group=True,
        entries=state.length,
        waiting=come.waiting if unread else 0,
        lag_ms=_age_ms(unread, now),
        pending=come.pending,
        oldest=await _oldest(redis, stream, group, now),
        settled=come.settled,
        lost=come.lost,
        dead_letters=dead,
        consumers=await consumers(redis, stream, group),
    )


def _age_ms(id_: EntryId | None, now_ms: int) -> int:
    return max(0, now_ms - id_.ms) if id_ else 0


async def _oldest(redis: Redis, stream: str, group: str, now_ms: int) -> Oldest | None:
    found = await oldest_pending(redis, stream, group)
    if found is None:
        return None
    id_, held = found
    age_ms = _age_ms(id_, now_ms)
    return Oldest(str(id_), held.consumer, age_ms, held.idle_ms, held.deliveries)


async def recent_outcomes(
    ledger: Ledger, streams: Sequence[str], *, within_s: float
) -> Mapping[str, OutcomeFigures]:
    """What was recorded within the last seconds, for each stream.

    :raises PostgresUnavailable: no answer
    """
    within = timedelta(seconds=within_s)
    return await _outcomes(ledger, "recent_outcomes", streams, within)


async def outcome_totals(ledger: Ledger, streams: Sequence[str]) -> Mapping[str, OutcomeFigures]:
    """All that is on record, for each stream. Takes about a second for ten million rows.

    :raises PostgresUnavailable: no answer
    """
    return await _outcomes(ledger, "outcome_totals", streams)


async def _outcomes(
    ledger: Ledger, query: str, streams: Sequence[str], *arguments: object
) -> Mapping[str, OutcomeFigures]:
    counts: dict[str, dict[str, int]] = {stream: {} for stream in streams}
    async with ledger.connection() as connection:
        for row in await connection.fetch(SQL[query], streams, *arguments):
            counts[row["stream"]][row["outcome"]] = row["count"]
    return {stream: OutcomeFigures(**found) for stream, found in counts.items()}


async def points_owed(ledger: Ledger, streams: Sequence[str]) -> Mapping[str, PointFigures]:
    """The points that InfluxDB does not have, for each stream.

    :raises PostgresUnavailable: no answer
    """
    async with ledger.connection() as connection:
        rows = await connection.fetch(SQL["points_owed"], streams)
    found = {row["stream"]: PointFigures(*row[1:]) for row in rows}
    return {stream: found.get(stream, PointFigures()) for stream in streams}
