"""The figures that `status`, metrics and pages show, of real servers."""

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from streams.look import Consumer
from tests.isolation import Place
from tests.orders import T0_MS, order, orders
from tests.workers import drain
from worker.ledger import Ledger
from worker.operate.figures import (
    OutcomeFigures,
    PointFigures,
    StreamFigures,
    outcome_totals,
    points_owed,
    recent_outcomes,
    stream_figures,
)
from worker.run import ledger_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def ledger(place: Place) -> AsyncGenerator[Ledger]:
    async with ledger_of(place.settings) as ledger:
        yield ledger


async def figures(place: Place) -> StreamFigures:
    return await stream_figures(place.redis, place.stream, place.settings.group)


async def test_of_a_stream_that_is_not_there_all_is_zero_and_nothing_is_made(place: Place) -> None:
    assert await figures(place) == StreamFigures(place.stream, place.settings.group)
    assert await place.command("KEYS", "*") == []


async def test_without_a_group_everything_waits(place: Place) -> None:
    await place.publish(orders(range(3)), [f"{T0_MS + n}-0" for n in range(3)])
    found = await figures(place)
    assert (found.has_group, found.entries, found.waiting, found.pending) == (False, 3, 3, 0)
    assert found.lag_ms > 0


async def test_what_waits_and_what_is_pending_is_told_with_its_age_and_holder(place: Place) -> None:
    stream, group = place.stream, place.settings.group
    await place.command("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
    await place.publish(orders(range(5)), [f"{T0_MS + n}-0" for n in range(5)])
    await place.command("XREADGROUP", "GROUP", group, "w-7", "COUNT", 2, "STREAMS", stream, ">")
    found = await figures(place)
    assert (found.has_group, found.entries, found.pending) == (True, 5, 2)
    assert found.waiting in (3, None)  # Redis before version 7 does not count
    assert found.oldest
    assert (found.oldest.entry_id, found.oldest.consumer) == (f"{T0_MS}-0", "w-7")
    assert found.oldest.deliveries == 1
    assert found.oldest.age_ms > found.lag_ms > found.oldest.held_ms
    assert found.lag_ms - found.oldest.age_ms == -2
    (consumer,) = found.consumers
    assert consumer == Consumer("w-7", 2, consumer.idle_ms, consumer.asking_counts)


async def test_a_stream_that_is_settled_has_no_lag(place: Place) -> None:
    await place.publish([*orders(range(3)), order(0), order(9, side="hold")])
    await drain(place)
    found = await figures(place)
    assert (found.entries, found.waiting, found.lag_ms, found.pending) == (5, 0, 0, 0)
    assert (found.oldest, found.dead_letters, found.lost in (0, None)) == (None, 1, True)


async def test_outcomes_are_counted_by_stream_and_those_of_late_by_when_they_were_recorded(
    place: Place, ledger: Ledger
) -> None:
    await place.publish([*orders(range(3)), order(0), order(9, side="hold")])
    await drain(place)
    streams = [place.stream, "another"]
    expected = {place.stream: OutcomeFigures(3, 1, 1), "another": OutcomeFigures()}
    assert await outcome_totals(ledger, streams) == expected
    assert await recent_outcomes(ledger, streams, within_s=600) == expected
    for table in ("orders", "duplicates", "rejections"):
        await place.postgres.execute(
            f"UPDATE {table} SET recorded_at = recorded_at - interval '1h'"
        )
    assert await recent_outcomes(ledger, streams, within_s=600) == {
        stream: OutcomeFigures() for stream in streams
    }


async def test_points_owed_and_parked_are_counted_apart(place: Place, ledger: Ledger) -> None:
    owed = "INSERT INTO point_backlog (stream, entry_id, noted_at, refusal) VALUES ($1, $2, $3, $4)"
    times = [row["t"] for row in await place.fetch("SELECT now() AS t UNION ALL SELECT 'epoch'")]
    await place.fetch(owed, place.stream, "1-1", max(times), None)
    await place.fetch(owed, place.stream, "1-2", min(times), "422 no")
    found = await points_owed(ledger, [place.stream, "another"])
    assert found == {place.stream: PointFigures(1, max(times), 1), "another": PointFigures()}


async def test_the_last_minute_is_found_without_reading_the_tables(
    place: Place,
) -> None:
    """However long they are: through an index on the time of recording."""
    async with place.connected() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        for table in ("orders", "duplicates", "rejections"):
            explain = f"EXPLAIN SELECT count(*) FROM {table} WHERE recorded_at > now()"
            plan = await cast("Any", connection).fetch(explain)
            assert f"{table}_recorded_at_idx" in str(plan)
