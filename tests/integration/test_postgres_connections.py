"""Connections to Postgres: which are kept for the next batch, and which are not."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing

import anyio
import pytest

from tests.chaos.proxy import Proxy, Reset
from tests.isolation import Place
from tests.record import until
from tests.relay import half_open
from worker.errors import PostgresRefused, PostgresUnavailable, RowRefused
from worker.ledger import Ledger

pytestmark = pytest.mark.anyio

WITHIN_S = 30
RAISE = "DO $$ BEGIN RAISE EXCEPTION 'as asked for' USING ERRCODE = '{}'; END $$"


@pytest.fixture
async def ledger(place: Place) -> AsyncGenerator[Ledger]:
    """One that may have two connections."""
    async with ledger_at(place.settings.database_address, place) as ledger:
        yield ledger


def ledger_at(url: str, place: Place) -> AbstractAsyncContextManager[Ledger]:
    """The place's, at a URL that leads there."""
    return aclosing(Ledger(url, place.schema, timeout_ms=60_000, connections_max=2))


async def backend(ledger: Ledger) -> int:
    """The server process at the other end."""
    async with ledger.connection() as connection:
        return await connection.fetchval("SELECT pg_backend_pid()")


async def told(ledger: Ledger, sql: str) -> None:
    """Have a statement executed."""
    async with ledger.connection() as connection:
        await connection.execute(sql)


async def test_the_connection_of_one_transaction_is_that_of_the_next(ledger: Ledger) -> None:
    assert await backend(ledger) == await backend(ledger)


async def test_a_row_that_is_refused_costs_no_connection(ledger: Ledger) -> None:
    before = await backend(ledger)
    with pytest.raises(RowRefused):
        await told(ledger, "SELECT 'no number'::int")
    assert await backend(ledger) == before


async def test_after_an_error_that_passes_all_connections_are_made_anew(ledger: Ledger) -> None:
    async with ledger.connection() as connection:
        kept = await backend(ledger)
        at_hand = await connection.fetchval("SELECT pg_backend_pid()")
    with pytest.raises(PostgresUnavailable):
        await told(ledger, RAISE.format("25006"))
    async with ledger.connection():
        assert await backend(ledger) not in (kept, at_hand)
    assert await backend(ledger) not in (kept, at_hand)


@pytest.mark.parametrize("sqlstate", ["42P05", "26000"])
async def test_prepared_statements_that_a_pooler_mixes_up_are_the_operators_to_mend(
    ledger: Ledger, sqlstate: str
) -> None:
    with pytest.raises(PostgresRefused):
        await told(ledger, RAISE.format(sqlstate))


async def test_a_statement_that_nobody_waits_for_any_more_ends_in_postgres_too(
    ledger: Ledger, place: Place
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleep, ledger, place)
        await until(lambda: sleeps(place))
        tasks.cancel_scope.cancel()
    await until(lambda: awake(place))
    assert await backend(ledger)


async def test_a_connection_that_breaks_in_the_middle_of_a_statement_is_no_answer(
    place: Place,
) -> None:
    async with (
        Proxy.before(place.settings.database_address) as proxy,
        ledger_at(proxy.url, place) as ledger,
    ):
        assert not (await cut_short(ledger, place, lambda: proxy.inflict(Reset()))).answered
        await terminate(place)  # Postgres sees nothing of it before it has an answer to send


async def test_a_connection_told_of_its_end_is_postgres_being_away_and_not_a_bug(
    place: Place,
) -> None:
    """Its end has not come yet."""
    async with (
        half_open(place.settings.database_address) as (url, hung_up),
        ledger_at(url, place) as ledger,
    ):
        pid = await backend(ledger)
        await place.fetch("SELECT pg_terminate_backend($1)", pid)
        with anyio.fail_after(WITHIN_S):
            await hung_up.wait()
        with pytest.raises(PostgresUnavailable):
            await backend(ledger)
        assert await backend(ledger) != pid


async def test_what_postgres_says_before_it_ends_a_connection_is_an_answer(
    ledger: Ledger, place: Place
) -> None:
    assert (await cut_short(ledger, place, lambda: terminate(place))).answered


async def cut_short(
    ledger: Ledger, place: Place, by: Callable[[], Awaitable[None]]
) -> PostgresUnavailable:
    """The error of a statement in the middle of which something is done."""
    errors: list[PostgresUnavailable] = []

    async def run() -> None:
        with pytest.raises(PostgresUnavailable) as raised:
            await sleep(ledger, place)
        errors.append(raised.value)

    with anyio.fail_after(WITHIN_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await until(lambda: sleeps(place))
            await by()
    return errors[0]


def a_long_sleep(place: Place) -> str:
    """A statement that takes long and that no other place has."""
    return f"SELECT pg_sleep(600) AS {place.schema}"


async def sleep(ledger: Ledger, place: Place) -> None:
    """Have the long statement executed."""
    await told(ledger, a_long_sleep(place))


async def sleepers(place: Place) -> list[int]:
    """The server processes in the middle of it."""
    rows = await place.fetch(
        "SELECT pid FROM pg_stat_activity WHERE query = $1 AND state = 'active'",
        a_long_sleep(place),
    )
    return [row["pid"] for row in rows]


async def sleeps(place: Place) -> bool:
    """Whether there are such."""
    return bool(await sleepers(place))


async def awake(place: Place) -> bool:
    """Whether there are none."""
    return not await sleepers(place)


async def terminate(place: Place) -> None:
    """End their connections from Postgres' side."""
    for pid in await sleepers(place):
        await place.fetch("SELECT pg_terminate_backend($1)", pid)


async def test_who_wants_one_connection_more_waits_for_one(ledger: Ledger) -> None:
    third = anyio.Event()

    async def ask() -> None:
        await backend(ledger)
        third.set()

    with anyio.fail_after(WITHIN_S):
        async with anyio.create_task_group() as tasks:
            async with ledger.connection(), ledger.connection() as connection:
                tasks.start_soon(ask)
                await connection.fetchval("SELECT 1")
                assert not third.is_set()
            await third.wait()
