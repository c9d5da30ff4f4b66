"""Postgres looks at as much as a batch has, however much is on record and whenever it made its plans.

Plans are cached by the session. Made while the tables are small, a plan may read a table from end to end for
every batch, and goes on with that until autovacuum has seen the table grow. And an index may go through all
entries of the same key for each one more.
"""

from collections.abc import AsyncGenerator, Sequence

import pytest

from streams.entry import Entry
from tests.isolation import Place
from tests.orders import T0_MS, order
from tests.record import until
from worker.decide import Decision, Reject, decide
from worker.ledger import Ledger, Rules
from worker.order import ENVELOPE_FIELDS, READING, Malformed, parse

pytestmark = pytest.mark.anyio

WINDOW_MS = 3_600_000
WARM_UP, BATCHES, BATCH = 12, 40, 50  #: a plan is kept from its sixth use on
ROWS = BATCHES * BATCH
LOOKS_MAX = 4  #: rows of one table that an entry's way may read: for its outcome, for its point
TABLES = ("orders", "duplicates", "rejections", "point_backlog", "points_in_hand")
READ = """
    SELECT relname, seq_tup_read + idx_tup_read AS rows, n_tup_ins
    FROM pg_stat_user_tables t
    LEFT JOIN (SELECT relid, sum(idx_tup_read) AS idx_tup_read FROM pg_stat_user_indexes GROUP BY relid) i
        USING (relid)
    WHERE schemaname = $1 AND relname = ANY ($2)
"""
REPEATS, REPEATS_BATCH = 20_000, 1_000
WINDOWS = 2_000  #: entries of one order, a millisecond between two
BLOCKS_MAX = 8  #: of one index, for one repeat: from its root to a leaf, and for a leaf that splits
BLOCKS = """
    SELECT indexrelname AS index, idx_blks_hit + idx_blks_read AS blocks
    FROM pg_statio_user_indexes WHERE schemaname = $1
"""
REFUSED = """
    INSERT INTO point_backlog (stream, entry_id, refusal)
    SELECT $1, '1-' || n, '400 no' FROM generate_series(1, $2::int) n
"""


@pytest.fixture
async def ledger(place: Place) -> AsyncGenerator[Ledger]:
    """One session, whose plans are made while all tables are empty and never analyzed."""
    for table in TABLES:
        await place.fetch(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    url = place.settings.database_address
    ledger = Ledger(url, place.schema, timeout_ms=30_000, connections_max=1)
    yield ledger
    await ledger.aclose()


async def test_no_batch_and_no_drain_reads_a_table_from_end_to_end(
    place: Place, ledger: Ledger
) -> None:
    for _ in range(WARM_UP):
        await record(ledger, place, 0, 3)
        await drain(ledger, 0)
    for batch in range(1, BATCHES):
        await record(ledger, place, batch * BATCH, BATCH)
    while await drain(ledger, BATCH):
        pass
    await told(place, ledger, 2 * (ROWS - BATCH))
    read = {row["relname"]: row["rows"] for row in await place.fetch(READ, place.schema, TABLES)}
    assert {table: rows for table, rows in read.items() if rows > LOOKS_MAX * ROWS} == {}


async def test_an_order_sent_without_end_costs_no_more_with_each_repeat(
    place: Place, ledger: Ledger
) -> None:
    for first in range(0, REPEATS, REPEATS_BATCH):
        numbers = range(first, first + REPEATS_BATCH)
        await write(ledger, place, [repeat(place, n) for n in numbers])
    await told(place, ledger, 2 * REPEATS)
    blocks = {row["index"]: row["blocks"] for row in await place.fetch(BLOCKS, place.schema)}
    assert blocks["duplicates_pkey"] >= REPEATS
    assert {it: count for it, count in blocks.items() if count > BLOCKS_MAX * REPEATS} == {}


async def test_an_order_costs_no_more_with_each_window_it_was_sent_in(
    place: Place, ledger: Ledger
) -> None:
    for first in range(0, WINDOWS, BATCH):
        batch = [repeat(place, n) for n in range(first, first + BATCH)]
        await write(ledger, place, batch, window_ms=1)
    await told(place, ledger, 2 * WINDOWS)
    [orders] = await place.fetch(READ, place.schema, ["orders"])
    assert orders["n_tup_ins"] == WINDOWS / 2
    assert orders["rows"] <= 2 * LOOKS_MAX * WINDOWS  # one look before the insert, one after it


async def test_points_that_were_refused_cost_nothing_any_more(place: Place, ledger: Ledger) -> None:
    await place.fetch(REFUSED, place.stream, ROWS)
    await record(ledger, place, 0, BATCH)
    while await drain(ledger, BATCH):
        pass
    await told(place, ledger, ROWS + BATCH)
    [backlog] = await place.fetch(READ, place.schema, ["point_backlog"])
    assert backlog["rows"] <= LOOKS_MAX * BATCH


async def test_debts_whose_outcomes_were_deleted_keep_no_others_from_their_turn(
    place: Place, ledger: Ledger
) -> None:
    await record(ledger, place, 0, 2 * BATCH)
    for table in ("duplicates", "orders", "rejections"):
        await place.fetch(f"DELETE FROM {table}")
    await record(ledger, place, 2 * BATCH, BATCH)
    assert await drain(ledger, BATCH) == BATCH


def repeat(place: Place, n: int) -> Decision:
    """One order again, its order id the same, too."""
    fields = [word for pair in order(0, order_id="A-17").items() for word in pair]
    entry = Entry(place.stream, f"{T0_MS + n}-0", fields)
    return decide(entry, parse(fields), None, WINDOW_MS)


async def record(ledger: Ledger, place: Place, first: int, count: int) -> None:
    """Record a batch of new orders, repeats and rejections."""
    await write(ledger, place, [decision(place, n) for n in range(first, first + count)])


async def write(
    ledger: Ledger, place: Place, batch: Sequence[Decision], window_ms: int = WINDOW_MS
) -> None:
    """Record a batch, its points owed."""
    rules = Rules(window_ms, ENVELOPE_FIELDS, READING)
    await ledger.record(place.stream, batch, rules=rules, owe_points=True, read_after=ledger.as_of)


def decision(place: Place, n: int) -> Decision:
    """Every third entry is new, repeats that, or is rejected."""
    fields = [word for pair in order(n // 3).items() for word in pair]
    entry = Entry(place.stream, f"{T0_MS}-{n}", fields)
    if n % 3 == 2:
        return Reject(entry, Malformed("x", "x"))
    return decide(entry, parse(fields), None, WINDOW_MS)


async def drain(ledger: Ledger, count_max: int) -> int:
    """Pay some points; says how many."""
    async with ledger.owed_points(count_max) as debt:
        debt.paid += debt.points
    return len(debt.paid)


async def told(place: Place, ledger: Ledger, inserted: int) -> None:
    """Wait until Postgres tells all that it has counted, which it does when the session ends."""
    await ledger.aclose()

    async def seen() -> bool:
        rows = await place.fetch(READ, place.schema, TABLES)
        return sum(row["n_tup_ins"] for row in rows) >= inserted

    await until(seen)
