"""Entries trimmed while a worker has them in hand: the first outcome on record stands, and no other is made.

Their ids may be given again, to orders that come later: those are lost to nothing.
"""

import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from functools import partial

import anyio
import pytest

from streams.entry import Entry
from tests.isolation import Place, isolated
from tests.orders import ids, order, parsed
from tests.record import check_points, dead_letters, points_paid, recording, until
from tests.servers import Servers
from tests.workers import Workers, drain, impatient, working
from worker.decide import Insert, Reject
from worker.embedded import PostgresServer
from worker.ledger import Ledger, Rules
from worker.order import ENVELOPE_FIELDS, READING, Malformed
from worker.outcome import Accepted, Kept, Outcome, Rejected

pytestmark = pytest.mark.anyio

RULES = Rules(1000, ENVELOPE_FIELDS, READING)
TRIMMED = ("rejected", "trimmed")
ACCEPTED = ("accepted", None)
NO_ORDER = {"order_id": "A-1", "side": "hold"}


async def outcomes(place: Place) -> dict[str, list[tuple[str, str | None]]]:
    """Every outcome and its code, by entry."""
    rows = await place.fetch("SELECT entry_id, outcome, code FROM outcomes ORDER BY recorded_at")
    found: dict[str, list[tuple[str, str | None]]] = {}
    for row in rows:
        found.setdefault(row["entry_id"], []).append((row["outcome"], row["code"]))
    return found


async def all_read(place: Place, count: int) -> bool:
    """Whether so many entries are in the hands of workers; not before there is a group."""
    return await place.pending() == count


async def trim_all(place: Place) -> None:
    await place.command("XTRIM", place.stream, "MAXLEN", 0)


async def test_a_worker_that_wakes_after_its_entries_were_trimmed_and_taken_over_changes_nothing(
    place: Place, workers: Workers
) -> None:
    place = impatient(place)
    async with place.orders_locked():
        sent = await place.publish([order(1), NO_ORDER, order(1), order(2)])
        sleeper = await workers.start(place)
        await until(lambda: all_read(place, len(sent)))
        await until(lambda: recording(place, 1))
        sleeper.signal(signal.SIGSTOP)
        await trim_all(place)
        await until(lambda: recording(place, 0))  # Postgres has given the request up
    await drain(place)
    assert await outcomes(place) == {id_: [TRIMMED] for id_ in sent}
    sleeper.signal(signal.SIGCONT)
    await sleeper.logged("entries.trimmed_in_hand")
    sleeper.signal(signal.SIGTERM)
    assert await sleeper.ended() == 0
    assert await outcomes(place) == {id_: [TRIMMED] for id_ in sent}
    await points_paid(place)
    await check_points(place)
    assert len(await dead_letters(place)) == len(sent)


async def test_an_id_given_again_after_it_was_trimmed_loses_no_order(place: Place) -> None:
    place = impatient(place)
    at = ids(0, 1, 2)
    await rejected_as_trimmed(place, at)
    await place.redis.delete(place.stream)
    await place.publish([order(4), order(5), order(4)], at)
    await drain(place, within_s=2.5)  # at once, and not when the entries are taken over
    found = await outcomes(place)
    assert [found[id_] for id_ in at] == [
        [TRIMMED, ACCEPTED],
        [TRIMMED, ACCEPTED],
        [TRIMMED, ("duplicate", None)],
    ]


async def rejected_as_trimmed(place: Place, at: Sequence[str]) -> None:
    """Leave these ids on record as entries that were trimmed while a worker held them."""
    await place.publish([order(n) for n in range(len(at))], at)
    await place.command("XGROUP", "CREATE", place.stream, place.settings.group, "0")
    read = ("XREADGROUP", "GROUP", place.settings.group, "dead", "STREAMS", place.stream, ">")
    await place.command(*read)
    await trim_all(place)
    await drain(place)
    assert await outcomes(place) == {id_: [TRIMMED] for id_ in at}


async def test_an_order_whose_id_was_trimmed_since_its_worker_last_asked_is_read_once_more(
    place: Place,
) -> None:
    """The worker cannot tell it from one that was trimmed in its hand; the one who reads it again can."""
    at = ids(0)
    async with working(place) as events:  # idle: it knows Postgres' time from before the rejection
        await events.wait_for("worker.ready")
        await place.publish([order(9)])
        await until(lambda: on_record(place, 1))
        await place.postgres.execute(
            "INSERT INTO rejections (stream, entry_id, entry_at, code, reason, fields, recorded_at)"
            " VALUES ($1, $2, now(), 'trimmed', '', '{}', clock_timestamp())",
            place.stream,
            at[0],
        )
        await place.redis.delete(place.stream)
        await place.publish([order(1)], at)
        await events.wait_for("entries.trimmed_in_hand")
        assert (await outcomes(place))[at[0]] == [TRIMMED]
        await drain(impatient(place))
    assert (await outcomes(place))[at[0]] == [TRIMMED, ACCEPTED]
    assert await place.pending() == 0


async def on_record(place: Place, count: int) -> bool:
    return len(await place.fetch("SELECT FROM outcomes")) == count


# --- two workers at the same moment ---


@pytest.fixture
async def ledger(place: Place) -> AsyncGenerator[Ledger]:
    ledger = Ledger(place.settings.database_address, place.schema, timeout_ms=20_000)
    await ledger.hear_as_of()
    yield ledger
    await ledger.aclose()


def with_fields(place: Place) -> Insert:
    entry = Entry(place.stream, "1767225600000-0", [w for p in order(1).items() for w in p])
    return Insert(entry, parsed(order(1)))


def without_fields(place: Place) -> Reject:
    entry = Entry(place.stream, "1767225600000-0", None)
    return Reject(entry, Malformed("trimmed", "gone"))


HOLD_ORDER = """
INSERT INTO orders (content_hash, generation, stream, entry_id, entry_at, order_id, symbol, side, type,
    quantity, time_in_force, recorded_at)
VALUES ($1, 0, 's', '1-1', now(), 'o', 'S', 'buy', 'market', 1, 'gtc', now())
"""
RECORD_NOTHING = "SELECT FROM record_outcomes($1, '1s', $2, 1, '{}', '{}', false, null, '{}')"
HOLD_REJECTION = """
INSERT INTO rejections (stream, entry_id, entry_at, code, reason, fields, recorded_at)
VALUES ($1, $2, now(), 'x', '', '{}', now())
"""


async def race(
    place: Place, ledger: Ledger, first: Insert | Reject, second: Insert | Reject
) -> list[list[Outcome]]:
    """Record two decisions on one entry at once: the first stands still in the midst of its transaction."""
    read_after: datetime | None = ledger.as_of
    record = partial(ledger.record, place.stream, rules=RULES, owe_points=False)
    found: dict[int, list[Outcome]] = {}

    async def run(n: int, decision: Insert | Reject) -> None:
        found[n] = (await record([decision], read_after=read_after)).outcomes

    async with anyio.create_task_group() as tasks, place.connected() as connection:
        held = connection.transaction()
        await held.start()
        if isinstance(first, Insert):
            await connection.execute(HOLD_ORDER, first.order.content_hash)
        else:
            await connection.execute(HOLD_REJECTION, place.stream, first.entry.id)
        tasks.start_soon(run, 0, first)
        await until(lambda: blocked(place, "transactionid"))
        tasks.start_soon(run, 1, second)
        await until(lambda: blocked(place, "advisory"))
        assert not found
        await held.rollback()
    return [found[0], found[1]]


async def blocked(place: Place, locktype: str) -> bool:
    return bool(
        await place.fetch(
            "SELECT FROM pg_locks WHERE locktype = $1 AND NOT granted"
            " AND database IS NOT DISTINCT FROM CASE $1 WHEN 'advisory' THEN (SELECT oid"
            " FROM pg_database WHERE datname = current_database()) END",
            locktype,
        )
    )


async def test_an_entry_found_trimmed_while_another_worker_records_it_is_accepted_once(
    place: Place, ledger: Ledger
) -> None:
    [first], [second] = await race(place, ledger, with_fields(place), without_fields(place))
    assert isinstance(first, Accepted)
    assert second == Kept(second.entry)
    assert await outcomes(place) == {first.entry.id: [ACCEPTED]}


async def test_an_entry_recorded_while_another_worker_finds_it_trimmed_is_rejected_once(
    place: Place, ledger: Ledger
) -> None:
    [first], [second] = await race(place, ledger, without_fields(place), with_fields(place))
    assert isinstance(first, Rejected)
    assert second == Kept(second.entry, final=False)
    assert await outcomes(place) == {first.entry.id: [TRIMMED]}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_a_database_that_shows_transactions_one_snapshot_does_not_hide_what_the_first_recorded(
    clean_servers: Servers, own_postgres: PostgresServer, isolation: str
) -> None:
    async with isolated(clean_servers, database_url=own_postgres.url) as place:
        database = (await place.fetch("SELECT current_database() AS name"))[0]["name"]
        await place.fetch(
            f"ALTER DATABASE {database} SET default_transaction_isolation = '{isolation}'"
        )
        ledger = Ledger(place.settings.database_address, place.schema, timeout_ms=20_000)
        async with aclosing(ledger):
            await ledger.hear_as_of()
            await place.fetch(RECORD_NOTHING, place.stream, sorted(RULES.envelope))
            [first], [second] = await race(place, ledger, with_fields(place), without_fields(place))
        assert isinstance(first, Accepted)
        assert second == Kept(second.entry)
        assert await outcomes(place) == {first.entry.id: [ACCEPTED]}


async def test_batches_without_trimmed_entries_do_not_wait_for_each_other(
    place: Place, ledger: Ledger
) -> None:
    await place.fetch(RECORD_NOTHING, place.stream, sorted(RULES.envelope))  # the first goes alone
    async with place.connected() as connection:
        held = connection.transaction()
        await held.start()
        await connection.execute(RECORD_NOTHING, place.stream, sorted(RULES.envelope))
        with anyio.fail_after(10):
            [outcome], _ = await ledger.record(
                place.stream,
                [with_fields(place)],
                rules=RULES,
                owe_points=False,
                read_after=None,
            )
        assert isinstance(outcome, Accepted)
        await held.rollback()
