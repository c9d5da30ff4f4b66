"""The schema: made and brought up to date by `migrate`, and checked by the worker at its start."""

from importlib.resources import files
from typing import Any, cast

import asyncpg
import pytest

from tests.isolation import Place
from tests.relay import pooler
from tests.workers import Workers
from worker.embedded import PostgresServer
from worker.ledger import queries

pytestmark = pytest.mark.anyio

STATEMENTS = {
    f"{path.name}:{name}": sql
    for path in (files("worker") / "sql").iterdir()
    for name, sql in queries(path.name.removesuffix(".sql")).items()
}


@pytest.fixture
async def fresh(place: Place) -> Place:
    """A place whose schema is not there yet."""
    await place.postgres.execute(f"DROP SCHEMA {place.schema} CASCADE")
    return place


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
async def test_every_query_prepares_on_the_migrated_schema(place: Place, statement: str) -> None:
    async with place.connected() as connection:
        await connection.prepare(statement)


def test_there_are_queries() -> None:
    assert STATEMENTS


async def test_migrate_makes_a_fresh_schema_and_a_second_time_does_nothing(
    fresh: Place, workers: Workers
) -> None:
    first, second = [await migrated(fresh, workers) for _ in range(2)]
    assert first.splitlines()[0].startswith("applied 0001_")
    for output in (first, second):
        assert output.splitlines()[-1] == f"schema {fresh.schema} is up to date"
    assert "applied" not in second
    assert await fresh.fetch("SELECT * FROM outcomes") == []


async def test_what_indexes_are_made_of_compares_as_bytes_in_a_database_of_any_language(
    place: Place,
) -> None:
    keys = await place.fetch(
        "SELECT a.attrelid::regclass::text || '.' || a.attname AS key, c.collname "
        "FROM pg_index i JOIN pg_class r ON r.oid = i.indrelid "
        "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) "
        "LEFT JOIN pg_collation c ON c.oid = a.attcollation "
        "WHERE r.relnamespace = current_schema()::regnamespace AND a.atttypid = 'text'::regtype"
    )
    assert {"orders.entry_id", "duplicates.order_id"} < {row["key"] for row in keys}
    assert [row["key"] for row in keys if row["collname"] != "C"] == []


async def migrated(place: Place, workers: Workers) -> str:
    worker = await workers.start(place, "migrate")
    assert await worker.ended() == 0
    return worker.output


async def test_of_migrators_at_once_one_applies_and_all_succeed(
    fresh: Place, workers: Workers
) -> None:
    started = [await workers.start(fresh, "migrate") for _ in range(3)]
    assert [await worker.ended() for worker in started] == [0, 0, 0]
    assert sum("applied 0001_" in worker.output for worker in started) == 1


async def test_a_worker_refuses_a_schema_that_is_not_there(fresh: Place, workers: Workers) -> None:
    await refused(fresh, workers, "older than this worker", "python -m worker migrate")


async def test_a_worker_refuses_an_older_schema(place: Place, workers: Workers) -> None:
    await place.postgres.execute("DELETE FROM schema_migrations")
    await refused(place, workers, "older than this worker", "python -m worker migrate")


@pytest.mark.parametrize("command", [[], ["migrate"]])
async def test_a_newer_schema_is_refused(
    place: Place, workers: Workers, command: list[str]
) -> None:
    await place.postgres.execute(
        "INSERT INTO schema_migrations (version, name) VALUES (9999, 'of_the_future')"
    )
    await refused(place, workers, "newer", "update the worker", command=command)


async def test_a_schema_of_other_migrations_is_refused(place: Place, workers: Workers) -> None:
    await place.postgres.execute(
        "UPDATE schema_migrations SET name = 'first_outcome' WHERE version = 2"
    )
    await refused(
        place, workers, "migration 0002 of the schema is first_outcome", "DATABASE_SCHEMA"
    )


@pytest.mark.parametrize("command", [[], ["migrate"]])
async def test_sessions_that_do_not_lead_to_the_schema_are_refused(
    place: Place, workers: Workers, command: list[str]
) -> None:
    """Workers of two schemas would suppress each other's orders."""
    async with pooler(place.variables["DATABASE_URL"]) as url:
        words = 'search_path is "$user", public', f"{place.schema} was asked for", "PgBouncer"
        await refused(place.having(DATABASE_URL=url), workers, *words, command=command)
    [row] = await place.fetch("SELECT to_regclass('public.schema_migrations') AS made")
    assert row["made"] is None


@pytest.mark.parametrize("command", [[], ["migrate"]])
async def test_a_database_that_cannot_store_every_text_is_refused(
    place: Place, own_postgres: PostgresServer, workers: Workers, command: list[str]
) -> None:
    """Else orders would be rejected for what their database is."""
    connection = cast("Any", await asyncpg.connect(own_postgres.url))
    await connection.execute(
        "CREATE DATABASE western ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    )
    await connection.close()
    url = own_postgres.url.rpartition("/")[0] + "/western"
    words = "a database in LATIN1", "ENCODING 'UTF8'"
    await refused(place.having(DATABASE_URL=url), workers, *words, command=command)


async def refused(
    place: Place, workers: Workers, *sentence: str, command: list[str] | None = None
) -> None:
    worker = await workers.start(place, *(command or []))
    assert await worker.ended() == 2
    last = worker.log.splitlines()[-1]
    assert last.startswith("ordergate: ")
    for part in sentence:
        assert part in last
    assert "Traceback" not in worker.log
    groups = await place.redis.exists(place.stream)
    assert groups == 0  # nothing was started


async def test_an_amount_is_kept_to_the_last_digit_and_notional_is_exact(place: Place) -> None:
    row, *_ = await place.fetch(
        "INSERT INTO orders (content_hash, generation, stream, entry_id, entry_at, order_id, symbol,"
        " side, type, quantity, price, time_in_force, recorded_at) VALUES (sha256('x'), 0, 's', '1-1',"
        " now(), 'o', 'S', 'buy', 'limit', 0.1234567890123456789012345678, 3.0, 'gtc', now())"
        " RETURNING quantity::text, notional::text"
    )
    assert row == {
        "quantity": "0.1234567890123456789012345678",
        "notional": "0.37037036703703703670370370340",
    }
