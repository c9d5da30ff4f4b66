"""docs/trading/placing.md, statement by statement: what takes accepted orders on gets each once."""

import signal
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Sequence
from pathlib import Path
from typing import cast

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from scripts.replay.synthetic import synthetic_orders
from tests.isolation import Place, isolated
from tests.markdown import fenced
from tests.orders import ids, order, orders
from tests.record import Tally, check, until
from tests.servers import Servers
from tests.workers import Workers, drain
from worker.embedded import PostgresServer

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).resolve().parents[2] / "docs"
OUTBOX, EARLIER, TAKE, GRANTS, WAITING = fenced(
    (DOCS / "trading/placing.md").read_text(encoding="utf-8"), "sql"
)
WORKERS_RIGHTS = next(
    block
    for block in fenced((DOCS / "database/schema.md").read_text(encoding="utf-8"), "sql")
    if block.startswith("GRANT USAGE")
)
TWENTY = [order(n) for n in range(20)]
LOAD = [*synthetic_orders(3000, 900, seed=23), *orders(range(40)), *TWENTY]
DAY_MS = 86_400_000
NAMES = ("one", "two")


class Died(Exception):
    """A taker did, with the venue told of some orders."""


class Venue:
    """Refuses a client order id that it knows. :ivar placed: by that id. :ivar refused: how many were"""

    def __init__(self) -> None:
        self.placed: dict[str, tuple[bytes, int]] = {}
        self.refused = 0

    async def place(self, row: asyncpg.Record) -> None:
        """Place an order."""
        await anyio.lowlevel.checkpoint()
        what = (row["content_hash"], row["generation"])
        if row["client_order_id"] in self.placed:
            assert self.placed[row["client_order_id"]] == what
            self.refused += 1
        self.placed[row["client_order_id"]] = what


@pytest.fixture
async def place(clean_servers: Servers, own_postgres: PostgresServer) -> AsyncGenerator[Place]:
    """A place in a database of the test's own, for the page's statements to stand as they are."""
    async with isolated(clean_servers, database_url=own_postgres.url) as found:
        yield found


async def taken(place: Place, venue: Venue, dies_after: int | None = None) -> int:
    """Place what one look finds; gives how many. :raises Died: before the commit"""
    async with place.connected() as connection, connection.transaction():
        found = await cast("Awaitable[Sequence[asyncpg.Record]]", connection.fetch(TAKE))
        for number, row in enumerate(found):
            if number == dies_after:
                raise Died
            await venue.place(row)
    return len(found)


async def take_and_die(place: Place, venue: Venue, complete: anyio.Event) -> None:
    """Every third taker dies, some orders on."""
    number = 0
    while True:
        last, number = complete.is_set(), number + 1
        try:
            if not await taken(place, venue, dies_after=7 if number % 3 == 0 else None) and last:
                return
        except Died:
            continue
        await anyio.sleep(0.01)


async def test_each_accepted_order_is_placed_once_though_workers_and_takers_die(
    place: Place, workers: Workers
) -> None:
    place, venue, complete = place.having(WORKER_BATCH_SIZE="50"), Venue(), anyio.Event()
    await place.postgres.execute(OUTBOX)
    await place.publish(LOAD)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(take_and_die, place, venue, complete)
        pair = [await workers.start(place, WORKER_CONSUMER=name) for name in NAMES]
        await until(lambda: place.fetch("SELECT FROM orders OFFSET 500 LIMIT 1"))
        for worker in pair:
            worker.signal(signal.SIGKILL)
            await worker.ended()
        heirs = [await workers.start(place, "--drain", WORKER_CONSUMER=name) for name in NAMES]
        assert [await worker.ended() for worker in heirs] == [0, 0]
        complete.set()
    rows = await place.fetch("SELECT content_hash, generation FROM orders")
    assert Counter(venue.placed.values()) == Counter(tuple(row.values()) for row in rows)
    assert venue.refused
    [waiting] = await place.fetch(WAITING)
    assert waiting == {"count": 0, "longest": None}


async def test_orders_of_before_are_noted_with_the_trigger_and_later_generations_by_it(
    place: Place,
) -> None:
    venue = Venue()
    at = ids(*range(20), *range(DAY_MS + 1, DAY_MS + 21))
    await place.publish(TWENTY, at[:20])
    await drain(place)
    async with place.connected() as connection, connection.transaction():
        await connection.execute(OUTBOX)
        await connection.execute(EARLIER)
    await place.publish(TWENTY, at[20:])
    await place.publish([{**TWENTY[0], "order_id": "again"}, {"side": "hold"}])
    await drain(place)
    assert await check(place) == Tally(41, rejected=1)
    while await taken(place, venue):
        pass
    assert len(venue.placed) == 41
    assert not venue.refused
    assert all(len(client_order_id) == 32 for client_order_id in venue.placed)


async def test_an_order_waits_until_it_is_placed(place: Place) -> None:
    await place.postgres.execute(OUTBOX)
    await place.publish(orders(range(10)))
    await drain(place)
    venue = Venue()
    with pytest.raises(Died):
        await taken(place, venue, dies_after=3)
    [waiting] = await place.fetch(WAITING)
    assert waiting["count"] == 10
    assert waiting["longest"].total_seconds() > 0
    assert await taken(place, venue) == 10
    assert (len(venue.placed), venue.refused) == (10, 3)


async def test_a_batch_is_taken_in_the_order_of_its_entries(place: Place) -> None:
    await place.postgres.execute(OUTBOX)
    sent = await place.publish(orders(range(30)), ids(*([5] * 30)))
    await drain(place)
    found = await place.fetch(TAKE)
    assert [row["entry_id"] for row in found] == sent


async def test_orders_recorded_anew_after_a_loss_have_the_ids_that_they_had(place: Place) -> None:
    await place.postgres.execute(OUTBOX)
    at = ids(*range(10), *range(DAY_MS + 1, DAY_MS + 11))
    await place.publish([*orders(range(10)), *orders(range(10))], at)
    await drain(place)
    venue = Venue()
    assert await taken(place, venue) == 20

    await place.postgres.execute("TRUNCATE orders, duplicates, rejections")
    await place.command("XGROUP", "DESTROY", place.stream, place.settings.group)
    await drain(place)
    assert await taken(place, venue) == 20
    assert (len(venue.placed), venue.refused) == (20, 20)


async def test_neither_workers_nor_takers_need_rights_of_the_owner(
    place: Place, own_postgres: PostgresServer
) -> None:
    await place.postgres.execute(OUTBOX)
    await place.postgres.execute("CREATE ROLE worker LOGIN PASSWORD 'secret'; CREATE ROLE taker")
    for statement in (WORKERS_RIGHTS.replace("tbot", "worker"), GRANTS):
        await place.postgres.execute(statement.replace("SCHEMA public", f"SCHEMA {place.schema}"))
    await place.publish(orders(range(10)))
    address = own_postgres.url.rpartition("@")[2]
    await drain(place.having(DATABASE_URL=f"postgresql://worker:secret@{address}"))
    assert await check(place) == Tally(10)
    async with place.connected() as connection, connection.transaction():
        await connection.execute("SET LOCAL ROLE taker")
        assert len(await cast("Awaitable[Sequence[asyncpg.Record]]", connection.fetch(TAKE))) == 10
