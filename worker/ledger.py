"""The ledger: Postgres, where every outcome is on record and where the decision falls.

A batch is recorded by one call of the function `record_outcomes` (migrations/), which is one transaction
and one round trip: committed whole or not at all.
"""

import re
from collections.abc import AsyncGenerator, Container, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.resources import files
from itertools import chain
from typing import Any, NamedTuple

import anyio

from streams.entry import Entry
from worker.decide import Decision, Insert, Reject, Repeat
from worker.errors import RowRefused
from worker.order import Malformed
from worker.outcome import Accepted, Duplicate, Kept, Outcome, Rejected
from worker.points import Point
from worker.postgres import Connection, Postgres

ENTRY_MS_MAX = 2**63 - 1  #: a bigint; Postgres keeps rejections beyond the year 2262 as infinity


def queries(name: str) -> Mapping[str, str]:
    """The statements of `worker/sql/<name>.sql`, by the name in each one's `-- name:` line."""
    text = (files("worker") / "sql" / f"{name}.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SQL = queries("ledger")


class Refused(NamedTuple):
    """A point that InfluxDB will never take, and what it said."""

    point: Point
    answer: str


class Rules(NamedTuple):
    """What decides which entries are one order: the dedupe window, the fields that are no content, and the
    version of how this worker reads entries.
    """

    window_ms: int
    envelope: frozenset[str]
    reading: int


class Recorded(NamedTuple):
    """What a batch came to, and the notes that its points are in hand, none where they are owed."""

    outcomes: list[Outcome]
    in_hand: list[int]


@dataclass(slots=True)
class Debt:
    """Points owed, and what became of them; those in neither list stay owed.

    :ivar until: when what became of them is to be known, by the event loop's clock
    """

    points: list[Point]
    until: float
    paid: list[Point] = field(default_factory=list[Point])
    refused: list[Refused] = field(default_factory=list[Refused])


class Ledger:
    """The outcomes in one schema. Every method raises `PostgresUnavailable`; calling again is safe.

    :param timeout_ms: bound on one transaction, connecting included
    :param connections_max: connections to Postgres at once
    :ivar as_of: Postgres' own time at some moment that is past, for `record`; None until it was heard
    """

    as_of: datetime | None = None

    def __init__(self, url: str, schema: str, *, timeout_ms: int, connections_max: int = 4) -> None:
        self._timeout_s = timeout_ms / 1000
        self._written: list[int] = []
        self._postgres = Postgres(
            url, schema, timeout_ms=timeout_ms, connections_max=connections_max
        )

    async def aclose(self) -> None:
        """See `Postgres.aclose`."""
        await self._postgres.aclose()

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """See `Postgres.connection`."""
        return self._postgres.connection()

    async def record(
        self,
        stream: str,
        decisions: Sequence[Decision],
        *,
        rules: Rules,
        owe_points: bool,
        read_after: datetime | None,
    ) -> Recorded:
        """Record a batch of one stream and say what became of each entry, in the order given.

        Points that are not owed are in hand: tell `points_written` once they are written, or owed. Those of a
        worker that cannot are owed by `settle_in_hand`.

        Where the data of a row is refused, halves are recorded each in a transaction of its own, until
        that row alone is rejected as `not_storable`. An entry that is on record as rejected stays
        so, whatever is decided now.

        :param rules: by which the decisions were made. An entry that is on record by others keeps its outcome
        :param owe_points: note all the entries' points as owed, in the same transaction
        :param read_after: `as_of` before the entries were read; tells those trimmed since then, by other
            workers' word, from others that have their ids
        """
        how = rules, owe_points, read_after
        try:
            return await self._record(stream, decisions, *how)
        except RowRefused as refused:
            if len(decisions) > 1:
                half = len(decisions) // 2
                halves = [
                    await self.record(
                        stream,
                        part,
                        rules=rules,
                        owe_points=owe_points,
                        read_after=read_after,
                    )
                    for part in (decisions[:half], decisions[half:])
                ]
                outcomes, in_hand = zip(*halves, strict=True)
                return Recorded([*chain(*outcomes)], [*chain(*in_hand)])
            return await self._record(stream, [_not_storable(decisions[0], refused)], *how)

    async def _record(
        self,
        stream: str,
        decisions: Sequence[Decision],
        rules: Rules,
        owe_points: bool,
        read_after: datetime | None,
    ) -> Recorded:
        rejections = [_rejection_row(d) for d in decisions if isinstance(d, Reject)]
        window, envelope = timedelta(milliseconds=rules.window_ms), sorted(rules.envelope)
        how = rejections, owe_points, read_after
        with self._telling_written() as written:
            asked: set[str] = set()
            while True:
                orders = [_order_row(d, asked) for d in decisions if not isinstance(d, Reject)]
                batch = stream, window, envelope, rules.reading, orders, *how, written
                async with self.connection() as connection:
                    row = await connection.fetchrow(SQL["record_outcomes"], *batch)
                assert row  # noqa: S101 - a function with OUT parameters answers with one row
                if not row["asked"]:
                    break
                asked.update(row["asked"])
        self.as_of = row["as_of"]
        in_hand = [] if row["in_hand"] is None else [row["in_hand"]]
        return Recorded(_outcomes(decisions, row), in_hand)

    def points_written(self, in_hand: Sequence[int]) -> None:
        """Note that the points of these batches are written, or owed; the next call tells Postgres."""
        self._written += in_hand

    @contextmanager
    def _telling_written(self) -> Generator[list[int]]:
        """The notes of batches whose points are written; told again where a call may have failed."""
        written, self._written = self._written, []
        try:
            yield written
        except BaseException:
            self._written += written
            raise

    async def settle_in_hand(self, *, left_after_ms: int) -> None:
        """Forget batches whose points are written, and owe some of those that were left behind.

        :param left_after_ms: the worker of a batch that is in hand for so long has left it
        """
        left_after = timedelta(milliseconds=left_after_ms)
        with self._telling_written() as written:
            async with self.connection() as connection:
                await connection.execute(SQL["settle_in_hand"], written, left_after)

    async def hear_as_of(self) -> None:
        """Ask Postgres for its time, before the first batch; each batch brings it anew."""
        async with self.connection() as connection:
            self.as_of = await connection.fetchval(SQL["as_of"])

    async def owe_points(self, stream: str, entry_ids: Sequence[str]) -> None:
        """Note entries whose point InfluxDB did not take."""
        async with self.connection() as connection:
            await connection.execute(SQL["owe_points"], stream, entry_ids)

    @asynccontextmanager
    async def owed_points(self, count_max: int) -> AsyncGenerator["Debt"]:
        """Some of the points owed, locked; leaving without an error forgets those that are `paid`.

        Those put into `refused` on the way are parked with InfluxDB's answer and not offered again.
        """
        async with self.connection() as connection, connection.transaction():
            await connection.execute(SQL["row_by_row"])
            rows = await connection.fetch(SQL["owed_points"], count_max)
            debt = Debt([Point(**row) for row in rows], anyio.current_time() + self._timeout_s)
            yield debt
            for point, answer in debt.refused:
                await connection.execute(SQL["point_refused"], point.stream, point.entry_id, answer)
            streams, ids = [p.stream for p in debt.paid], [p.entry_id for p in debt.paid]
            await connection.execute(SQL["points_paid"], streams, ids)


def _order_row(decision: Insert | Repeat, asked: Container[str]) -> tuple[Any, ...]:
    entry, order = decision.entry, decision.order
    return (
        entry.id,
        entry.ms,
        isinstance(decision, Repeat),
        order.content_hash,
        order.order_id,
        order.account,
        order.symbol,
        order.side,
        order.type,
        order.quantity,
        order.price,
        order.stop_price,
        order.time_in_force,
        order.expire_at and order.expire_at.isoformat(),
        order.extra,
        entry.raw_fields if entry.id in asked else None,
    )


def _rejection_row(decision: Reject) -> tuple[Any, ...]:
    entry, malformed = decision.entry, decision.malformed
    return (
        entry.id,
        min(entry.ms, ENTRY_MS_MAX),
        malformed.code,
        malformed.reason,
        malformed.order_id,
        malformed.symbol,
        entry.raw_fields,
    )


def _not_storable(decision: Decision, refused: RowRefused) -> Reject:
    code = "not_storable"
    return Reject(decision.entry, Malformed(code, f"Postgres refuses the row: {refused}"))


def _outcomes(decisions: Sequence[Decision], row: Mapping[str, Any]) -> list[Outcome]:
    accepted = set(row["accepted"])
    others = {each["entry_id"]: each for each in chain(row["others"], row["rejected"] or ())}
    return [_outcome(d, d.entry.id in accepted, others.get(d.entry.id)) for d in decisions]


def _outcome(decision: Decision, accepted: bool, other: Mapping[str, Any] | None) -> Outcome:
    entry: Entry = decision.entry
    if accepted and not isinstance(decision, Reject):
        return Accepted(entry, decision.order, 0)
    if other is None:
        return Kept(entry)
    if "code" in other:
        words = other["code"], other["reason"], other["order_id"], other["symbol"]
        return Rejected(entry, Malformed(*words), other["redelivered"])
    if isinstance(decision, Reject) or other["outcome"] == "trimmed":
        return Kept(entry, final=False)
    if other["outcome"] == "accepted":
        return Accepted(entry, decision.order, other["generation"], other["redelivered"])
    return Duplicate(
        entry,
        decision.order,
        other["generation"],
        other["original_entry_id"],
        other["redelivered"],
    )
