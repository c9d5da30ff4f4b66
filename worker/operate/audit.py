"""`audit`: entries read = accepted + duplicates + rejections + pending, proved from all three servers; and
no content is accepted twice within its window.

Works while workers go on, by the order of its looks. The group's position and what is pending come before the
outcomes, so whatever was acknowledged then must be on record; the backlog of points comes before the points,
so a point is in one of the two. What still looks wrong is looked up once more before it counts.

Memory is bounded: streams, outcomes and points are read side by side in the order of entry ids. Only what is
pending is kept, 16 bytes for each entry.
"""

import argparse
import sys
from array import array
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from streams.entry import EntryId
from streams.look import StreamState, entries_between, last_delivered, pending_ids, stream_state
from worker.errors import BadUsage, NoAnswer
from worker.ledger import queries
from worker.operate.audit_claims import ClaimsAudit
from worker.operate.audit_report import Report, Span
from worker.operate.command import (
    Servers,
    moment_ms,
    now_ms,
    run,
    schema_checked,
    servers_told,
    streams_of,
)
from worker.operate.output import print_json
from worker.operate.point_reader import FoundPoint
from worker.points import NS_MAX, time_ns

SQL = queries("operate")
AT_ONCE = 2000  #: entries or rows that are looked at together
FIRST_ROW_S_MAX = 3600.0  #: seconds; Postgres sorts all rows before the first
OWN_TIME_NS_END = NS_MAX - 2**48  #: from here on times do not follow the order of ids


class Row(NamedTuple):
    """An outcome as Postgres has it."""

    id: EntryId
    outcome: str
    content_hash: bytes | None
    orphan: bool
    settled: bool
    owed: bool
    refused: bool
    before_it: str | None


class Seen(NamedTuple):
    """One entry, and who knows of it."""

    id: EntryId
    in_stream: bool
    pending: bool
    rows: list[Row]


def run_audit(options: argparse.Namespace) -> int:
    """Audit each stream. 0 where all is balanced, 1 where something differs or could not be looked at."""
    return run(lambda servers: _run(servers, options))


async def _run(servers: Servers, options: argparse.Namespace) -> int:
    now = now_ms()
    span = Span(moment_ms("--since", options.since, now), moment_ms("--until", options.until, now))
    if span.since_ms is not None and span.until_ms is not None and span.since_ms >= span.until_ms:
        raise BadUsage("--since must lie before --until")
    await schema_checked(servers)
    reports: list[Report] = []
    for stream in streams_of(servers.settings, options.stream):
        audit = Audit(servers, span, Report(stream, options.limit), repair=options.repair)
        await audit.run()
        reports.append(audit.report)
        if not options.json:
            audit.report.print(str(span))
    if options.json:
        print_json([{"balanced": it.balanced, **msgspec.to_builtins(it)} for it in reports])
    return 0 if all(report.balanced for report in reports) else 1


class Audit:
    """The audit of one stream."""

    def __init__(self, servers: Servers, span: Span, report: Report, *, repair: bool) -> None:
        self._servers, self._span, self.report, self._repair = servers, span, report, repair
        self._redis, self._stream = servers.redis, report.stream
        self._position: EntryId | None = None
        self._points_from = (span.since_ms or 0) * 1_000_000
        self._looked_at = 0

    async def run(self) -> None:
        """Look at everything; `report` says what was found."""
        state = await stream_state(self._redis, self._stream)
        group = self._servers.settings.group
        self._position = await last_delivered(self._redis, self._stream, group)
        held = array("Q")
        async for id_ in pending_ids(self._redis, self._stream, group):
            held.extend(id_)
        pending = filter(self._span.has, map(EntryId, held[::2], held[1::2]))
        async with self._rows() as rows:
            await self._entries(merged(self._ids(state), pending, rows), state)
        try:
            with servers_told():
                await ClaimsAudit(
                    self._servers, self._span, self.report, self._position, repair=self._repair
                ).run()
        except NoAnswer as error:
            self.report.unchecked["claims"] = str(error)
        _progress("")

    async def _ids(self, state: StreamState | None) -> AsyncGenerator[EntryId]:
        since, until = self._span
        if state is None:
            return
        last = state.last if until is None else min(state.last, EntryId(until, 0).before())
        first = None if since is None else EntryId(since, 0)
        async for entries in entries_between(self._redis, self._stream, first, last):
            for entry in entries:
                yield EntryId.parse(entry.id)

    @asynccontextmanager
    async def _rows(self) -> AsyncGenerator[AsyncIterator[Row]]:
        """The outcomes as of now, through a cursor: however many, and however long it takes."""
        bounds = (ms and datetime.fromtimestamp(ms / 1000, UTC) for ms in self._span)
        settings = self._servers.settings
        held = timedelta(milliseconds=settings.takeover_after_ms)
        window = timedelta(milliseconds=settings.dedupe_window_ms)
        async with self._servers.ledger.connection() as connection, connection.transaction():
            await connection.execute(
                "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
            )
            cursor = connection.cursor(
                SQL["audited_outcomes"], self._stream, *bounds, held, window,
                prefetch=AT_ONCE, timeout=FIRST_ROW_S_MAX,
            )  # fmt: skip
            yield (Row(EntryId.parse(record[0]), *record[1:]) async for record in cursor)

    # --- entries and their outcomes ---

    async def _entries(self, entries: AsyncIterator[Seen], state: StreamState | None) -> None:
        known = 0
        chunk: list[Seen] = []
        async for seen in entries:
            known += state is not None and seen.id <= state.last
            self._count(seen)
            chunk.append(seen)
            if len(chunk) == AT_ONCE:
                await self._look_at(chunk)
                chunk.clear()
        await self._look_at(chunk, last=True)
        self._count_lost(state, known)

    def _count(self, seen: Seen) -> None:
        report = self.report
        for row in seen.rows:
            report.accepted += row.outcome == "accepted"
            report.duplicates += row.outcome == "duplicate"
            report.rejected += row.outcome == "rejected"
            report.points_owed += row.owed and not row.refused
            report.points_refused += row.refused
            if row.orphan:
                report.differs("original_missing", str(seen.id), "duplicate")
            if row.before_it:
                report.differs(
                    "accepted_twice", str(seen.id), f"the same content as {row.before_it}"
                )
        if seen.rows or seen.pending or self._was_read(seen):
            report.read += 1
            report.pending += seen.pending and not seen.rows
            report.trimmed += not seen.in_stream
        else:
            report.unread += 1
        if len(seen.rows) > 1:
            told = " and ".join(row.outcome for row in seen.rows)
            same = len({row.content_hash for row in seen.rows}) == 1
            detail = f"{told}, {'the same content' if same else 'different contents'}"
            report.differs("two_outcomes", str(seen.id), detail)

    def _was_read(self, seen: Seen) -> bool:
        return self._position is not None and seen.id <= self._position

    async def _look_at(self, chunk: Sequence[Seen], *, last: bool = False) -> None:
        """Look up once more what seems to have no outcome, and look at the points."""
        self._looked_at += len(chunk)
        _progress(f"{self._stream}: {self._looked_at:,} entries …")
        lacking = [
            str(seen.id) for seen in chunk
            if not (seen.rows or seen.pending) and self._was_read(seen)
        ]  # fmt: skip
        missing = await self._without_outcome(lacking)
        for entry_id in missing:
            self.report.differs("outcome_missing", entry_id, "read, and not pending")
        self.report.read -= len(lacking) - len(missing)  # recorded just now: the next audit's
        if "points" not in self.report.unchecked:
            try:
                with servers_told():
                    await self._points(chunk, last=last)
            except NoAnswer as error:
                self.report.unchecked["points"] = str(error)

    async def _without_outcome(self, entry_ids: Sequence[str]) -> list[str]:
        if not entry_ids:
            return []
        async with self._servers.ledger.connection() as connection:
            rows = await connection.fetch(SQL["without_outcome"], self._stream, entry_ids)
        return [row["entry_id"] for row in rows]

    def _count_lost(self, state: StreamState | None, known: int) -> None:
        """Compare with what was ever added, which Redis counts from 7 on, and for the stream as it is now."""
        report = self.report
        if not self._span.is_whole:
            report.lost = "not asked: only some entries are audited"
        elif state is None:
            report.lost = "unknown: there is no such stream"
        elif state.added is None:
            report.lost = "unknown: Redis counts what was added from version 7 on"
        elif state.added < known:
            report.lost = f"unknown: the stream was made anew, {state.added:,} entries ago"
        else:
            lost = state.added - known
            report.lost = f"{lost:,} of {state.added:,} added"
            if lost:
                report.differs("entries_lost", self._stream, report.lost, count=lost)

    # --- points ---

    async def _points(self, chunk: Sequence[Seen], *, last: bool) -> None:
        """Compare the points of a chunk with its outcomes, from where the chunk before ended."""
        expected = {time_ns(str(seen.id)): seen for seen in chunk if seen.rows}
        until = max((at for at in expected if at < OWN_TIME_NS_END), default=self._points_from - 1)
        if last:
            until_ms = self._span.until_ms
            until = OWN_TIME_NS_END if until_ms is None else until_ms * 1_000_000
            until = min(until, OWN_TIME_NS_END) - 1
        found: dict[int, set[str]] = defaultdict(set)
        spans = [(self._points_from, until)]
        spans += [(at, at) for at in expected if at >= OWN_TIME_NS_END]
        for first, end in spans:
            async for page in self._pages(first, end):
                for at, outcome in page:
                    found[at].add(outcome)
                await self._strange(found, expected)
        self._points_from = max(self._points_from, until + 1)
        await self._compare(found, expected)

    def _pages(self, first_ns: int, last_ns: int) -> AsyncGenerator[list[FoundPoint]]:
        return self._servers.points.between(self._stream, first_ns, last_ns)

    async def _strange(self, found: dict[int, set[str]], expected: Mapping[int, Seen]) -> None:
        """Tell of points that belong to no entry here, and let go of them."""
        strange = {
            f"{at // 1_000_000}-{at % 1_000_000}": at for at in found.keys() - expected.keys()
        }
        for entry_id in await self._without_outcome(list(strange)):
            outcomes = " and ".join(sorted(found[strange[entry_id]]))
            self.report.differs("point_without_outcome", entry_id, f"it tells of {outcomes}")
        for at in strange.values():
            del found[at]

    async def _compare(self, found: Mapping[int, set[str]], expected: Mapping[int, Seen]) -> None:
        missing: list[str] = []
        for at, seen in expected.items():
            there, outcomes = found.get(at, set[str]()), {row.outcome for row in seen.rows}
            self.report.points += bool(there)
            for outcome in sorted(there - outcomes):
                told = f"it tells of {outcome}, and Postgres of {' and '.join(sorted(outcomes))}"
                self.report.differs("point_differs", str(seen.id), told)
            if not there & outcomes and self._must_have_point(seen):
                missing.append(str(seen.id))
                told = " and ".join(sorted(outcomes))
                self.report.differs("point_missing", str(seen.id), told)
        if missing and self._repair:
            await self._servers.ledger.owe_points(self._stream, missing)
            self.report.differences["point_missing"].mended += len(missing)

    def _must_have_point(self, seen: Seen) -> bool:
        """Whether no worker can be about to write it or to note that it is owed."""
        if seen.pending or any(row.owed for row in seen.rows):
            return False
        return self._was_read(seen) or all(row.settled for row in seen.rows)


async def merged(
    ids: AsyncIterator[EntryId], pending: Iterator[EntryId], rows: AsyncIterator[Row]
) -> AsyncGenerator[Seen]:
    """Every entry that one of the three knows, in the order of ids; each of them is in that order."""
    entry, held, row = await anext(ids, None), next(pending, None), await anext(rows, None)
    while heads := [head for head in (entry, held, row and row.id) if head is not None]:
        at = min(heads)
        seen = Seen(at, entry == at, held == at, [])
        if seen.in_stream:
            entry = await anext(ids, None)
        if seen.pending:
            held = next(pending, None)
        while row and row.id == at:
            seen.rows.append(row)
            row = await anext(rows, None)
        yield seen


def _progress(text: str) -> None:
    """Show how far it is, on a terminal; an empty text takes that away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
